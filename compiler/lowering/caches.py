"""The caches of a native program: their kernels and their words of the plan (docs/plan.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from runnel.compiler.codegen import cached
from runnel.compiler.codegen.cache_shape import CacheShape, block_of, width_of
from runnel.compiler.codegen.cached_latent import attend_latent
from runnel.compiler.codegen.cached_rows import attend_rows, rows_of
from runnel.compiler.codegen.module import KernelModule
from runnel.compiler.lowering.frame import round_up
from runnel.compiler.lowering.lower import Lowering
from runnel.compiler.lowering.signals import Cached, NoKernel
from runnel.compiler.streaming.kinds.cache import CachedAttend, Rotary
from runnel.kv import POLICIES, POSITIONS, KvSpec, parse

TURN_POINTERS, STORE_POINTERS, ATTEND_POINTERS, ROWS_POINTERS = 3, 7, 12, 13
WORD = 1 << 64
# 2 pi to 60 digits, so that a turn is right to the last of its 128 bits.
TWO_PI = Fraction(6283185307179586476925286766559005768394338798750211641949889, 10**60)

Weights = Callable[[np.ndarray], int]
Symbol = tuple[str, int, int]


@dataclass(frozen=True)
class _Kernels:
    """Names of the kernels of one cache. rows: how many frames attend_rows takes, 0: there is none."""

    turn_query: str
    turn_key: str
    store: str
    attend: str
    rows: int
    attend_rows: str


class Caches:
    """The caches of a program in the order of their instructions. Raises NoKernel where one has no kernels."""

    def __init__(self, low: Lowering, steps: list[Cached], module: KernelModule, hop: int) -> None:
        self.steps, self.module, self.hop = steps, module, hop
        self.rules = self._rules(low) if steps else KvSpec()
        self.heads = [self._heads(step.node) for step in steps]
        self.shapes = [self._shape(step.node, heads) for step, heads in zip(steps, self.heads, strict=True)]
        self.kernels = [self._kernels(shape) for shape in self.shapes]

    @property
    def ranked(self) -> bool:
        """Whether positions are ranks among slots that drop out of the middle."""
        return self.rules.positions == "contiguous" and self.rules.policy not in ("full", "window")

    def index(self, step: Cached) -> int:
        """The number of an instruction's cache."""
        return self.steps.index(step)

    @staticmethod
    def _rules(low: Lowering) -> KvSpec:
        spec = parse(low.graph.kv or "full")
        if spec.policy == "full" and not spec.slots:
            if low.graph.max_frames is None:
                raise NoKernel("keeps all of a stream; say how long one may be with max_frames, or bound it with kv")
            spec = replace(spec, slots=low.graph.max_frames)
        keys, values = spec.keys or 32, spec.values or 32
        return replace(spec, positions=spec.positions or "absolute", keys=keys, values=values)

    def _heads(self, node: CachedAttend) -> tuple[int, ...]:
        """What is said of each KV head, as in ``KvSpec``."""
        table = self.rules.heads
        if table is None:
            return (0,) * node.kv_heads
        if node.layer >= len(table) or len(table[node.layer]) != node.kv_heads:
            raise NoKernel(f"has {node.kv_heads} KV heads, for which the table of heads has no row")
        return table[node.layer]

    def _shape(self, node: CachedAttend, heads: tuple[int, ...]) -> CacheShape:
        rules, rotary = self.rules, node.rotary
        width = width_of(self.module.target)
        slots = max(rules.most(head) for head in heads)
        if node.window:
            slots = min(slots, node.window)
        if rules.policy == "retain" and (len(node.inputs) < 4 or node.inputs[3] is None):
            raise NoKernel("is given nothing to rank tokens by; name the model's output that does with retain=NAME")
        if rules.policy == "merge" and rotary is not None and rotary.sections is not None:
            raise NoKernel("has positions of several axes, by which keys cannot be merged")
        if slots < 1:
            raise NoKernel("has a cache without slots")
        if len(node.inputs) > 4 and node.inputs[4] is not None and rules.positions == "contiguous":
            raise NoKernel("is told positions, which cannot be counted among what is kept")
        if node.shared and node.kv_heads > 1 and (rules.keys != rules.values or rules.keys == 4):
            raise NoKernel("has values inside keys, which several heads can store in 32 or 8 bits only")
        for bits, size, what in ((rules.keys, node.key_dim, "keys"), (rules.values, node.value_dim, "values")):
            if bits == 4 and size % 2:
                raise NoKernel(f"has {what} of {size} features, which 4 bits each do not fill bytes with")
        return CacheShape(
            node.heads, node.kv_heads, node.key_dim, node.value_dim, round_up(slots, width), rules.keys, rules.values,
            0 if rotary is None else len(rotary.frequencies), 0 if rotary is None else rotary.start,
            rotary is not None and rotary.interleaved, node.scale, node.softcap,
            node.slopes is not None or node.bias is not None, node.sinks is not None,
            rules.positions == "contiguous" and rules.sink > 0 and rotary is not None and not self.ranked,
            self.ranked and rotary is not None,
            # Two codes of 4 bits lie in one byte, half a row apart.
            node.shared and rules.keys == rules.values != 4,
        )  # fmt: skip

    def _kernels(self, shape: CacheShape) -> _Kernels:
        target, symbol = self.module.target, self.module.symbol
        rows = rows_of(shape)
        if 2 * self.hop < rows:
            rows = 0
        return _Kernels(
            symbol(cached.turn(target, shape, shape.heads, shape.scale)),
            symbol(cached.turn(target, shape, shape.kv_heads, 1.0, shape.ranked)),
            symbol(cached.store(target, shape)),
            symbol((attend_latent if shape.shared else cached.attend)(target, shape)),
            rows,
            symbol(attend_rows(target, shape)) if rows else "",
        )

    def words(self, weights: Weights, symbols: list[Symbol]) -> list[int]:
        """The rules, the caches and the heads; adds constants to the weights and kernels to ``symbols``."""
        if not self.steps:
            return []
        rules = self.rules
        words = [POLICIES.index(rules.policy), POSITIONS.index(rules.positions or ""), sum(map(len, self.heads))]
        words += [*rules.params, 0, 0, 0, 0]
        for step, shape, kernels in zip(self.steps, self.shapes, self.kernels, strict=True):
            words += self._cache(step.node, shape, kernels, weights, symbols)
        return words + [head for heads in self.heads for head in heads]

    def _cache(
        self, node: CachedAttend, shape: CacheShape, kernels: _Kernels, weights: Weights, symbols: list[Symbol]
    ) -> list[int]:
        def place(data: np.ndarray | None, dtype: str) -> int:
            return -1 if data is None else weights(np.ascontiguousarray(data, dtype))

        def kernel(name: str, pointers: int) -> int:
            entry = (name, pointers, 0)
            if entry not in symbols:
                symbols.append(entry)
            return symbols.index(entry)

        rotary = node.rotary
        sections = None if rotary is None or rotary.sections is None else np.array(rotary.sections)
        axes = 0 if len(node.inputs) < 5 or node.inputs[4] is None else int(node.inputs[4].shape[1] or 1)
        distances = 0 if node.bias is None else node.bias.shape[-1]
        return [
            shape.heads, shape.kv_heads, shape.key_dim, shape.value_dim, block_of(self.module.target, shape),
            shape.key_bits, 0 if shape.shared else shape.value_bits, shape.pairs,
            int(np.float32(1.0 if rotary is None else rotary.factor).view(np.int32)),
            -1 if rotary is None else weights(turns(rotary)), place(sections, "int32"), axes, node.window, distances,
            place(node.bias, "float32"), place(node.slopes, "float64"), place(node.sinks, "float32"),
            kernel(kernels.turn_query, TURN_POINTERS), kernel(kernels.turn_key, TURN_POINTERS),
            kernel(kernels.store, STORE_POINTERS), kernel(kernels.attend, ATTEND_POINTERS),
            shape.key_dim + shape.value_dim, shape.start, shape.pitch,
            -1 if rotary is None or not shape.ranked else weights(ranks(rotary, shape.pitch)), kernels.rows,
            kernel(kernels.attend_rows, ROWS_POINTERS) if kernels.rows else -1, 0,
        ]  # fmt: skip


def turns(rotary: Rotary) -> np.ndarray:
    """Turns of each pair from one position to the next in parts of 2^-128, (pairs, 2) uint64, low word first."""
    parts = [round(Fraction(float(f)) / TWO_PI * WORD * WORD) % (WORD * WORD) for f in rotary.frequencies]
    return np.array([(p % WORD, p // WORD) for p in parts], np.uint64)


def ranks(rotary: Rotary, count: int) -> np.ndarray:
    """Cosines and sines of positions from 0 on, (count, 2, pairs) float32."""
    angles = np.outer(np.arange(count), rotary.frequencies)
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * rotary.factor).astype(np.float32)
