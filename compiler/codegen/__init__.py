"""Machine code for frame programs: groups of ops become bare-C-ABI kernels in one flat image (docs/kernels.md)."""

from runnel.compiler.codegen.errors import CodegenError, Unsupported
from runnel.compiler.codegen.image import Image
from runnel.compiler.codegen.memory import frame_elements
from runnel.compiler.codegen.module import Arg, Kernel, KernelModule
from runnel.compiler.codegen.target import Target

__all__ = ["Arg", "CodegenError", "Image", "Kernel", "KernelModule", "Target", "Unsupported", "frame_elements"]
