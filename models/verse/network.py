"""The decoder's definition in PyTorch: Llama's form with rectified gates.

Grouped-query attention with rotary positions, RMS norms, a feed-forward layer relu(x·G)·(x·U)·D whose inner values are
mostly zero, and one matrix for embedding and logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .constants import (
    HEAD_WIDTH,
    HEADS,
    INNER,
    KV_HEADS,
    LAYERS,
    NORM_EPSILON,
    ROPE_BASE,
    VOCABULARY,
    WIDTH,
)


def rotation(tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (tokens, HEAD_WIDTH / 2) float32."""
    frequency = ROPE_BASE ** (-torch.arange(0, HEAD_WIDTH, 2, dtype=torch.float64) / HEAD_WIDTH)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the two halves of x's last axis against each other; x: (batch, heads, tokens, HEAD_WIDTH)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON) * self.scale


class Layer(nn.Module):
    """Attention and feed-forward, each x + f(norm(x)); x: (batch, tokens, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = RMSNorm()
        self.query = nn.Linear(WIDTH, HEADS * HEAD_WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, KV_HEADS * HEAD_WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, KV_HEADS * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(HEADS * HEAD_WIDTH, WIDTH, bias=False)
        self.inner_norm = RMSNorm()
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.attention_norm(x)
        q, k, v = (self.heads(f(y)) for f in (self.query, self.key, self.value))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.inner_norm(x)
        return x + self.down(F.relu(self.gate(y)) * self.up(y))

    @staticmethod
    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


class Decoder(nn.Module):
    """Tokens (batch, tokens) int64 to logits (batch, tokens, VOCABULARY) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm()
        nn.init.normal_(self.embedding.weight, std=0.05)
        for layer in self.layers:
            nn.init.normal_(layer.out.weight, std=0.02 / LAYERS**0.5)
            nn.init.normal_(layer.down.weight, std=0.02 / LAYERS**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cos, sin = rotation(tokens.shape[1])
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embedding.weight)
