"""Maps the top-level folders to ``runnel.*`` and compiles the board's C++ core. The metadata is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
FOLDERS = ("compiler", "runtime", "models", "targets", "tools")  # runnel.compiler is compiler/, and so on
RECIPE = Path("runtime/build_core.py")
LIBRARY = Path("runtime/_lib/librunnel.so")
DATA = ["py.typed", "*.sh", "*.service", "*.toml", "*.onnx", "*.wav", "*.json", "*.md", "*.txt"]
PARTS = ("core", "core/include", "board", "sign", "agent")
CPLUSPLUS = [f"{part}/*.{kind}" for part in PARTS for kind in ("cc", "h")]  # compiled for boards


def packages() -> list[str]:
    """Every folder with an ``__init__.py``, by its import name."""
    found = ["runnel"]
    for folder in FOLDERS:
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            found.append(".".join(("runnel", *init.parent.relative_to(ROOT).parts)))
    return found


class BuildCore(Command):
    """Compiles runtime/core into librunnel.so: in the tree for an editable install, in the build folder for a wheel."""

    description = "compile the C++ core"
    user_options = [("inplace", "i", "put the library into the source tree")]
    boolean_options = ["inplace"]
    editable_mode = False
    build_lib: str | None = None

    def initialize_options(self) -> None:
        self.build_lib = None
        self.inplace = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        recipe = ROOT / RECIPE
        if not recipe.exists():
            self.warn(f"{RECIPE} is missing: installing without the native core")
            return
        spec = importlib.util.spec_from_file_location("runnel_build_core", recipe)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        out = ROOT / LIBRARY if self.editable_mode or self.inplace else Path(self._built())
        out.parent.mkdir(parents=True, exist_ok=True)
        module.build(out)

    def _built(self) -> str:
        return str(Path(self.build_lib or "build/lib") / "runnel" / LIBRARY)

    def get_source_files(self) -> list[str]:
        sources = [
            p for p in (ROOT / "runtime" / "core").rglob("*") if p.suffix in (".cc", ".cpp", ".h", ".hpp", ".inc")
        ]
        return [str(p.relative_to(ROOT)) for p in sources]

    def get_outputs(self) -> list[str]:
        return [self._built()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands = [("build_core", None), *build.sub_commands]

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)  # a module that was deleted must not live on in a wheel
        super().run()


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3 of a platform: the core is reached through ctypes, not through Python's C API."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    distclass=PlatformDistribution,
    package_dir={"runnel": "runnel", **{f"runnel.{folder}": folder for folder in FOLDERS}},
    packages=packages(),
    package_data={
        "": DATA,
        "runnel.runtime": CPLUSPLUS,
        "runnel.tools.benchmark": ["*.cc"],
        "runnel.tools.lanes": ["*.cc"],
    },
    exclude_package_data={"runnel.runtime": ["_lib/*"]},
    include_package_data=False,
    cmdclass={"build": Build, "build_core": BuildCore, "bdist_wheel": PlatformWheel},
)
