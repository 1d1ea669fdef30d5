"""The licences that go with a model."""

from __future__ import annotations

from pathlib import Path

import onnx


def licences(model: str | Path | bytes | onnx.ModelProto) -> dict[str, bytes]:
    """The licence and notice files that lie beside the model."""
    if not isinstance(model, (str, Path)):
        return {}
    files = sorted(Path(model).parent.glob("*"))
    kept = [f for f in files if f.is_file() and f.stem.upper() in ("LICENSE", "LICENCE", "NOTICE", "COPYING")]
    return {f"licences/{f.name}": f.read_bytes() for f in kept if f.stat().st_size < 1 << 20}
