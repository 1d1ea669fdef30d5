"""runnel runs offline ONNX models as exact streams on small boards.

The names below are imported when they are first used, so that ``import runnel.runtime`` needs numpy alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runnel.errors import (
        BundleError,
        InputError,
        InternalError,
        Reason,
        Refused,
        RunnelError,
        SlowStorage,
        StreamError,
    )
    from runnel.runtime.program import load
    from runnel.runtime.runtime import Runtime
    from runnel.tools.build import compile_model as compile
    from runnel.tools.build import inspect_model as inspect

__all__ = [
    "BundleError",
    "InputError",
    "InternalError",
    "Reason",
    "Refused",
    "RunnelError",
    "Runtime",
    "SlowStorage",
    "StreamError",
    "compile",
    "inspect",
    "load",
]

_ELSEWHERE = {
    "Runtime": ("runnel.runtime.runtime", "Runtime"),
    "load": ("runnel.runtime.program", "load"),
    "compile": ("runnel.tools.build", "compile_model"),
    "inspect": ("runnel.tools.build", "inspect_model"),
}
_LAPTOP_ONLY = ("onnx", "onnxruntime", "tvm", "tvm_ffi", "ml_dtypes")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("runnel")
    if name not in __all__:
        raise AttributeError(f"module 'runnel' has no attribute '{name}'")
    module, attribute = _ELSEWHERE.get(name, ("runnel.errors", name))
    try:
        value = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in _LAPTOP_ONLY:
            raise
        from runnel.errors import InputError

        raise InputError(
            f"runnel.{name} needs the laptop's half and '{error.name}' is not installed: pip install 'runnel[compiler]'"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
