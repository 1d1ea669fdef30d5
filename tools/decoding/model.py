"""A Llama with random codes for weights, of any size and without a download: as ONNX and as GGUF, the same numbers in
both.

Every matrix is 8 or 4 bits with a scale (float16) for 32 inputs of one output: Q8_0 and Q4_0 of GGUF, MatMulNBits and
GatherBlockQuantized of ONNX, with GroupQueryAttention over caches that onnxruntime may keep in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import StringStringEntryProto, TensorProto, helper

BLOCK = 32
EPSILON = 1e-5
BASE = 10000.0
MICROSOFT = "com.microsoft"
FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama. capacity: tokens of onnxruntime's caches and of its table of angles."""

    layers: int = 24
    width: int = 1024
    hidden: int = 2816
    heads: int = 16
    kv_heads: int = 4
    vocabulary: int = 32000
    capacity: int = 512

    @property
    def size(self) -> int:
        """Features of a head."""
        return self.width // self.heads

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Name, inputs and outputs of each matrix of a step, in order of use."""
        narrow = self.kv_heads * self.size
        for i in range(self.layers):
            for name, inputs, outputs in (
                ("q", self.width, self.width), ("k", self.width, narrow), ("v", self.width, narrow),
                ("o", self.width, self.width), ("gate", self.width, self.hidden), ("up", self.width, self.hidden),
                ("down", self.hidden, self.width),
            ):  # fmt: skip
                yield f"{i}.{name}", inputs, outputs
        yield "head", self.width, self.vocabulary

    @property
    def parameters(self) -> int:
        return self.vocabulary * self.width + sum(k * n for _, k, n in self.matrices())


def matrix(name: str, inputs: int, outputs: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (outputs, inputs) int8 about zero and scales (outputs, inputs / 32) float16, the same for a name always."""
    rng = np.random.default_rng([bits, inputs, outputs, *name.encode()])
    most = (1 << (bits - 1)) - 1
    codes = rng.integers(-most, most + 1, (outputs, inputs), dtype=np.int8)
    spread = rng.uniform(0.5, 1.5, (outputs, inputs // BLOCK))
    gain = 1.0 if name == "embedding" else inputs**-0.5
    return codes, (spread * gain * 3**0.5 / most).astype(np.float16)


def gains(name: str, width: int) -> np.ndarray:
    """The weights of a norm."""
    return (1 + 0.1 * np.random.default_rng(list(name.encode())).standard_normal(width)).astype(np.float32)


def nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, 8 higher, two a byte along the last axis, the first lowest."""
    high = (codes + 8).astype(np.uint8)
    return high[..., 0::2] | high[..., 1::2] << 4


class _Graph:
    """Nodes and constants; large constants go to a file of their own as they are made."""

    def __init__(self, shape: Shape, bits: int, data: BinaryIO, location: str) -> None:
        self.shape, self.bits, self.data, self.location = shape, bits, data, location
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
        self.data.write(bytes(-self.data.tell() % 4096))
        place = {"location": self.location, "offset": self.data.tell(), "length": array.nbytes}
        tensor.external_data.extend(StringStringEntryProto(key=k, value=str(v)) for k, v in place.items())
        self.data.write(array.tobytes())
        self.constants.append(tensor)
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"node_{outputs[0]}", domain=domain, **attrs))
        return outputs[0]

    def product(self, x: str, y: str, name: str, inputs: int, outputs: int) -> str:
        codes, scales = matrix(name, inputs, outputs, self.bits)
        packed = nibbles(codes) if self.bits == 4 else (codes.astype(np.int16) + 128).astype(np.uint8)
        places = [
            self.constant(f"{name}.w", packed.reshape(outputs, inputs // BLOCK, -1)),
            self.constant(f"{name}.s", scales.astype(np.float32)),
        ]
        size = {"K": inputs, "N": outputs, "bits": self.bits, "block_size": BLOCK}
        return self.node("MatMulNBits", [x, *places], [y], MICROSOFT, **size)

    def norm(self, x: str, y: str) -> str:
        gain = self.constant(f"{y}.g", gains(y, self.shape.width))
        return self.node("SimplifiedLayerNormalization", [x, gain], [y], epsilon=EPSILON, axis=-1)

    def embedded(self, tokens: str) -> str:
        shape = self.shape
        codes, scales = matrix("embedding", shape.width, shape.vocabulary, self.bits)
        packed = nibbles(codes) if self.bits == 4 else (codes.astype(np.int16) + 128).astype(np.uint8)
        table = self.constant("embedding.w", packed)
        steps = self.constant("embedding.s", scales.astype(np.float32))
        attrs = {"bits": self.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        return self.node("GatherBlockQuantized", [table, tokens, steps], ["embedded"], MICROSOFT, **attrs)


def write_onnx(path: Path, shape: Shape, bits: int) -> None:
    """The decoder, its weights in a file beside it. Inputs: input_ids (1, T) int64, past_key_values.N.key and .value
    (1, KV heads, capacity, size), seqlens_k (1) int32, the number of tokens before minus one plus T, and
    total_sequence_length () int32. Outputs: logits (1, T, vocabulary) and present.N.key, .value."""
    location = f"{path.name}.data"
    with open(path.with_name(location), "wb") as data:
        made = _Graph(shape, bits, data, location)
        ports, results = _decoder(made)
    graph = helper.make_graph(made.nodes, "llama", ports, results, made.constants)
    sets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=10), path)


def _decoder(made: _Graph) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    shape = made.shape
    port = helper.make_tensor_value_info
    ports = [port("input_ids", TensorProto.INT64, [1, "T"]), port("seqlens_k", TensorProto.INT32, [1])]
    ports.append(port("total_sequence_length", TensorProto.INT32, []))
    results = [port("logits", FLOAT, [1, "T", shape.vocabulary])]
    angles = np.outer(np.arange(shape.capacity), BASE ** (-np.arange(0, shape.size, 2) / shape.size))
    tables = [made.constant(n, f(angles).astype(np.float32)) for n, f in (("cos", np.cos), ("sin", np.sin))]
    cache = [1, shape.kv_heads, "past", shape.size]
    x, sizes = made.embedded("input_ids"), {name: (k, n) for name, k, n in shape.matrices()}

    def product(x: str, name: str) -> str:
        return made.product(x, f"{name}.y", name, *sizes[name])

    for i in range(shape.layers):
        past = [f"past_key_values.{i}.{what}" for what in ("key", "value")]
        present = [f"present.{i}.{what}" for what in ("key", "value")]
        ports += [port(name, FLOAT, cache) for name in past]
        results += [port(name, FLOAT, [1, shape.kv_heads, "total", shape.size]) for name in present]
        h = made.norm(x, f"{i}.before")
        heads = [product(h, f"{i}.{name}") for name in "qkv"]
        attended = made.node(
            "GroupQueryAttention", [*heads, *past, "seqlens_k", "total_sequence_length", *tables],
            [f"{i}.attended", *present], MICROSOFT, num_heads=shape.heads, kv_num_heads=shape.kv_heads, do_rotary=1,
        )  # fmt: skip
        x = made.node("Add", [x, product(attended, f"{i}.o")], [f"{i}.middle"])
        h = made.norm(x, f"{i}.between")
        gate, up = product(h, f"{i}.gate"), product(h, f"{i}.up")
        bent = made.node("Mul", [gate, made.node("Sigmoid", [gate], [f"{i}.sigmoid"])], [f"{i}.silu"])
        h = made.node("Mul", [bent, up], [f"{i}.inner"])
        x = made.node("Add", [x, product(h, f"{i}.down")], [f"{i}.after"])
    made.product(made.norm(x, "last"), "logits", "head", *sizes["head"])
    return ports, results


def write_gguf(path: Path, shape: Shape, bits: int) -> None:
    """The same for llama.cpp: Q8_0 or Q4_0 throughout, no tokenizer. Needs the package gguf."""
    from gguf import GGMLQuantizationType, GGUFWriter  # type: ignore[import-not-found,unused-ignore]

    kind = GGMLQuantizationType.Q8_0 if bits == 8 else GGMLQuantizationType.Q4_0
    writer = GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.capacity)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(shape.size)
    writer.add_rope_freq_base(BASE)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(7 if bits == 8 else 2)
    known = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up"}
    known |= {"down": "ffn_down"}
    writer.add_tensor("token_embd.weight", _blocks("embedding", shape.width, shape.vocabulary, bits, 0), raw_dtype=kind)
    for name, inputs, outputs in shape.matrices():
        layer, _, what = name.rpartition(".")
        full = f"blk.{layer}.{known[what]}.weight" if layer else "output.weight"
        turned = {"q": shape.heads, "k": shape.kv_heads}.get(what, 0)
        writer.add_tensor(full, _blocks(name, inputs, outputs, bits, turned), raw_dtype=kind)
    for i in range(shape.layers):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", gains(f"{i}.before", shape.width))
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", gains(f"{i}.between", shape.width))
    writer.add_tensor("output_norm.weight", gains("last", shape.width))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(name: str, inputs: int, outputs: int, bits: int, heads: int) -> np.ndarray:
    """A matrix as GGUF's blocks: a scale, then 32 codes; of 4 bits code i with code i + 16. heads: of a matrix whose
    outputs are turned in neighbours there and in halves in ONNX; 0 for others."""
    codes, scales = matrix(name, inputs, outputs, bits)
    if heads:
        order = np.arange(outputs).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
        codes, scales = codes[order], scales[order]
    blocks = codes.reshape(outputs, -1, BLOCK)
    if bits == 4:
        high = (blocks + 8).astype(np.uint8)
        blocks = (high[..., :16] | high[..., 16:] << 4).view(np.int8)
    steps = np.ascontiguousarray(scales).view(np.int8).reshape(outputs, -1, 2)
    return np.concatenate([steps, blocks], -1).reshape(outputs, -1).view(np.uint8)
