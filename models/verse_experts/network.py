"""The decoder's definition in PyTorch: verse, with a mixture of experts in the place of each feed-forward layer.

Every expert begins as verse's own layer with a little noise, so that training has to tell them apart and little else.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

WIDTH, HEAD_WIDTH, GROUP, LAYERS, INNER = 96, 16, 3, 5, 192
EXPERTS, CHOSEN = 16, 2
ROPE_BASE, NORM_EPSILON = 10_000.0, 1e-5
NOISE = 0.3
VERSE = Path(__file__).resolve().parent.parent / "verse" / "verse.onnx"


def rotate(x: Tensor) -> Tensor:
    """x: (batch, heads, tokens, HEAD_WIDTH) turned to its positions."""
    frequency = ROPE_BASE ** (-torch.arange(0, HEAD_WIDTH, 2, dtype=torch.float64) / HEAD_WIDTH)
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().float(), angle.sin().float()
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def norm(x: Tensor, scale: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON) * scale


class Mixture(nn.Module):
    """The CHOSEN experts of each row with the highest scores, weighed by a softmax of these; an expert is
    silu(x·G)·(x·U)·D, gates and values of ``first`` interleaved. ``uneven`` says how
    unevenly the last call chose, ``changing`` how likely a token was to choose others than the one before."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor) -> None:
        super().__init__()
        first = torch.stack([gate.T, up.T], 1).reshape(2 * INNER, WIDTH).repeat(EXPERTS, 1, 1)
        second = down.T.repeat(EXPERTS, 1, 1)
        self.router = nn.Parameter(torch.randn(WIDTH, EXPERTS) * WIDTH**-0.5)
        self.first = nn.Parameter(first + NOISE * first.std() * torch.randn_like(first))
        self.second = nn.Parameter(second + NOISE * second.std() * torch.randn_like(second))
        self.uneven = self.changing = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        scores = rows @ self.router
        best, chosen = scores.topk(CHOSEN, -1)
        shares = best.softmax(-1)
        out = torch.zeros_like(rows)
        for e in range(EXPERTS):
            row, place = (chosen == e).nonzero(as_tuple=True)
            gate, value = (rows[row] @ self.first[e].T).unflatten(-1, (INNER, 2)).unbind(-1)
            made = (F.silu(gate) * value) @ self.second[e].T
            out = out.index_add(0, row, made * shares[row, place, None])
        taken = F.one_hot(chosen, EXPERTS).float().mean((0, 1))
        likely = scores.softmax(-1)
        self.uneven = EXPERTS * (taken * likely.mean(0)).sum()
        likely = likely.reshape(*x.shape[:-1], EXPERTS)
        self.changing = 1 - (likely[:, 1:] * likely[:, :-1]).sum(-1).mean()
        return out.reshape(x.shape)


class Decoder(nn.Module):
    """Tokens (batch, tokens) int64 to logits (batch, tokens, vocabulary) float32."""

    def __init__(self) -> None:
        super().__init__()
        arrays = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in onnx.load(VERSE).graph.initializer}
        kept = {n: v for n, v in arrays.items() if n.endswith((".weight", ".scale")) and ".inner." not in n}
        self.values = nn.ParameterDict({n.replace(".", "/"): nn.Parameter(v) for n, v in kept.items()})
        self.mixtures = nn.ModuleList(
            Mixture(*(arrays[f"layers.{i}.inner.{part}.weight"] for part in ("gate", "up", "down")))
            for i in range(LAYERS)
        )

    def value(self, name: str) -> Tensor:
        found: Tensor = self.values[name.replace(".", "/")]
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.value("embedding.weight"))
        for i, mixture in enumerate(self.mixtures):
            x = x + self.attention(f"layers.{i}", norm(x, self.value(f"layers.{i}.attention_norm.scale")))
            x = x + mixture(norm(x, self.value(f"layers.{i}.inner_norm.scale")))
        return norm(x, self.value("norm.scale")) @ self.value("embedding.weight").T

    def attention(self, name: str, x: Tensor) -> Tensor:
        parts = (x @ self.value(f"{name}.attention.{part}.weight") for part in ("query", "key", "value"))
        q, k, v = (p.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for p in parts)
        q, k = rotate(q), rotate(k)
        k, v = (t.repeat_interleave(GROUP, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2) @ self.value(f"{name}.attention.out.weight")
