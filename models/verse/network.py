"""The decoder's definition in PyTorch: Llama's form with rectified gates.

Grouped-query attention with rotary positions, RMS norms, a feed-forward layer relu(x·G)·(x·U)·D whose inner values are
mostly zero, and one matrix for embedding and logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .constants import NORM_EPSILON, ROPE_BASE, VERSE, VOCABULARY, Shape


def rotation(tokens: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (tokens, head_width / 2) float32."""
    frequency = ROPE_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the two halves of x's last axis against each other; x: (batch, heads, tokens, head width)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON) * self.scale


class Layer(nn.Module):
    """Attention and feed-forward, each x + f(norm(x)); x: (batch, tokens, width)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_width = shape.head_width
        self.group = shape.heads // shape.kv_heads
        queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        self.attention_norm = RMSNorm(shape.width)
        self.query = nn.Linear(shape.width, queries, bias=False)
        self.key = nn.Linear(shape.width, keys, bias=False)
        self.value = nn.Linear(shape.width, keys, bias=False)
        self.out = nn.Linear(queries, shape.width, bias=False)
        self.inner_norm = RMSNorm(shape.width)
        self.gate = nn.Linear(shape.width, shape.inner, bias=shape.gate_bias)
        self.up = nn.Linear(shape.width, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.attention_norm(x)
        q, k, v = (self.heads(f(y)) for f in (self.query, self.key, self.value))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(self.group, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.inner_norm(x)
        return x + self.down(F.relu(self.gate(y)) * self.up(y))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class Decoder(nn.Module):
    """Tokens (batch, tokens) int64 to logits (batch, tokens, VOCABULARY) float32."""

    def __init__(self, shape: Shape = VERSE) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(VOCABULARY, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width)
        nn.init.normal_(self.embedding.weight, std=0.05)
        for layer in self.layers:
            nn.init.normal_(layer.out.weight, std=0.02 / shape.layers**0.5)
            nn.init.normal_(layer.down.weight, std=0.02 / shape.layers**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cos, sin = rotation(tokens.shape[1], self.shape.head_width)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embedding.weight)
