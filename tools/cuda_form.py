"""The form of a bundle for a board's NVIDIA GPU, beside the one for its CPU: the same plan over kernels in PTX.

Entries: ``cuda/plan`` (docs/plan.md; a kernel's offset is its number in the list of launches), ``cuda/kernels`` (PTX),
and ``cuda/weights`` where they are not laid out as the CPU's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runnel import targets
from runnel.compiler.lowering.signals import NoKernel
from runnel.compiler.streaming.ir import StreamGraph
from runnel.tools.request import Request

if TYPE_CHECKING:  # TVM takes seconds to import: only what makes kernels waits for it
    from runnel.compiler.lowering.plan import NativeProgram


def cuda_form(
    graph: StreamGraph, request: Request, board: targets.Target, native: NativeProgram
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Entries, and what the manifest's target says of them; nothing where the board has no such GPU.

    Where the model has no kernels for it, "refusal" says why. Raises InputError for a capability that LLVM lacks.
    """
    capability = next((a.capability for a in board.accelerators if a.kind == "cuda"), None)
    if not capability:
        return {}, {}
    from runnel.compiler.codegen import KernelModule, Target, Unsupported
    from runnel.compiler.lowering.lower import lower
    from runnel.compiler.lowering.plan import Planner

    request.say("compiling kernels for the GPU")
    module = KernelModule(Target.cuda(capability))
    try:
        program = Planner(lower(graph), native.hop, module).build()
    except (NoKernel, Unsupported) as error:
        return {}, {"cuda": {"capability": capability, "refusal": str(error)}}
    entries = {"cuda/plan": program.plan, "cuda/kernels": program.image.code}
    same = program.weights == native.weights
    if not same:
        entries["cuda/weights"] = program.weights
    launches = [[symbol, module.threads[symbol]] for symbol in program.image.entries]
    described = {"capability": capability, "weights": "" if same else "cuda/weights", "launches": launches}
    return entries, {"cuda": described}
