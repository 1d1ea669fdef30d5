"""The tokenizer that goes into the bundle of a decoder of text."""

from __future__ import annotations

from pathlib import Path

import onnx

from runnel.compiler.streaming.ir import StreamGraph, Tail
from runnel.errors import InputError
from runnel.tools.generate.tokens import MergeTokenizer, open_tokenizer

FOLDER = "tokenizer/"
BESIDE = ("tokenizer.json", "tok*.bin")
MOST_BYTES = 1 << 26


def tokenizer_entries(
    model: str | Path | bytes | onnx.ModelProto, given: str | None, graph: StreamGraph
) -> dict[str, bytes]:
    """{entry: bytes} of the tokenizer named, or of the one beside the model that fits it; {} for what is no decoder.

    Raises InputError for a named one that cannot be read or does not fit.
    """
    vocabulary = _vocabulary(graph)
    if given is not None:
        if vocabulary is None:
            raise InputError(f"the tokenizer '{given}' is for a decoder of text, and this model is none; leave it out.")
        size = open_tokenizer(given).size
        if size > vocabulary:
            raise InputError(
                f"the tokenizer '{given}' has {size} tokens and the model {vocabulary}; name the model's own."
            )
        return {FOLDER + Path(given).name: Path(given).read_bytes()}
    if vocabulary is None or not isinstance(model, (str, Path)):
        return {}
    for path in (found for pattern in BESIDE for found in sorted(Path(model).parent.glob(pattern))):
        if _fits(path, vocabulary):
            return {FOLDER + path.name: path.read_bytes()}
    return {}


def _vocabulary(graph: StreamGraph) -> int | None:
    """Of a decoder: tokens in, and for each a row of logits; else None."""
    outputs = [value.stream if isinstance(value, Tail) else value for value in graph.outputs.values()]
    if len(graph.inputs) != 1 or not graph.inputs[0].dtype.startswith("int"):
        return None
    logits = outputs[0]
    if len(outputs) > 1 and any(o.dtype.startswith("int") for o in outputs):
        return None
    shape = [d for d in logits.frame_shape if d != 1]
    return shape[0] if logits.dtype.startswith("float") and len(shape) == 1 else None


def _fits(path: Path, vocabulary: int) -> bool:
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return False
    if path.suffix == ".json":  # read when text is made, so that compiling needs no tokenizers
        return True
    try:
        return MergeTokenizer(path.read_bytes(), str(path)).size == vocabulary
    except InputError:
        return False
