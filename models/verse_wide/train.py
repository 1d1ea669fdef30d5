"""Grow the trained verse and train on, with a price on active gates.

    python -m runnel.models.verse_wide.train --text build/verse/kjv.txt --verse build/verse --minutes 60

Channels and heads are repeated, so that the grown decoder begins as the one that it grew from; inner values beyond
those of verse begin rarely active and unused. Saves `verse_wide.pt`, and prints how many gates are active.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..verse.network import Decoder, Layer
from ..verse.text import encode, split
from ..verse.train import adam, examples, learning_rate, loss_on
from .constants import GROWTH, WIDE

BATCH = 4
PEAK_RATE = 1.5e-3
PRICE = 0.3
NOISE = 0.02
RARE = 1.5  # standard deviations that a fresh gate stays below zero


def repeat_outputs(weight: Tensor) -> Tensor:
    return weight.repeat(GROWTH, *[1] * (weight.ndim - 1))


def repeat_inputs(weight: Tensor) -> Tensor:
    return weight.repeat(1, GROWTH) / GROWTH


@torch.no_grad()
def grow(small: Decoder) -> Decoder:
    """A decoder of the shape WIDE with nearly the outputs of ``small``."""
    wide = Decoder(WIDE)
    wide.embedding.weight.copy_(small.embedding.weight.repeat(1, GROWTH))
    wide.norm.scale.copy_(repeat_outputs(small.norm.scale) / GROWTH)
    for old, new in zip(small.layers, wide.layers, strict=True):
        assert isinstance(old, Layer) and isinstance(new, Layer)
        for name in ("attention_norm", "inner_norm"):
            getattr(new, name).scale.copy_(repeat_outputs(getattr(old, name).scale))
        for name in ("query", "key", "value", "out"):
            getattr(new, name).weight.copy_(repeat_outputs(repeat_inputs(getattr(old, name).weight)))
        kept = small.shape.inner
        nn.init.normal_(new.gate.weight, std=WIDE.width**-0.5)
        new.gate.bias.fill_(-RARE)
        new.gate.bias[:kept] = 0
        new.gate.weight[:kept] = repeat_inputs(old.gate.weight)
        new.up.weight[:kept] = repeat_inputs(old.up.weight)
        new.down.weight.zero_()
        new.down.weight[:, :kept] = repeat_outputs(old.down.weight)
    for weight in wide.parameters():
        if weight.ndim > 1:  # copies that are all alike would stay alike
            weight.add_(torch.randn_like(weight) * weight.std() * NOISE)
    return wide


class Gates:
    """Watches the gates of a decoder: what they cost, and how many are active."""

    def __init__(self, net: Decoder) -> None:
        self.values: list[Tensor] = []
        for layer in net.layers:
            assert isinstance(layer, Layer)
            layer.gate.register_forward_hook(lambda module, inputs, output: self.values.append(output))

    def take(self) -> list[Tensor]:
        values, self.values = self.values, []
        return values

    def price(self) -> tuple[Tensor, float]:
        """What is above zero, in units of all gates' root mean square; and the fraction that is above zero."""
        values = self.take()
        cost = torch.stack([(v.relu().mean() / v.square().mean().sqrt()) for v in values]).mean()
        return cost, float(np.mean([float((v > 0).float().mean()) for v in values]))


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    text, held = split(options.text)
    tokenizer = Tokenizer.from_file(str(options.verse / "tokenizer.json"))
    tokens = encode(tokenizer, text)
    small = Decoder()
    small.load_state_dict(torch.load(options.verse / "verse.pt", map_location="cpu", weights_only=True))
    net = grow(small)
    gates, optimiser, file = Gates(net), adam(net), options.build / "verse_wide.pt"
    print(f"{len(tokens)} tokens, {sum(p.numel() for p in net.parameters())} parameters", flush=True)
    began, step, totals = time.monotonic(), 0, np.zeros(2)
    while (minutes := (time.monotonic() - began) / 60) < options.minutes:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(minutes / options.minutes, PEAK_RATE)
        inputs, targets = examples(rng, tokens, BATCH)
        loss = F.cross_entropy(net(inputs).flatten(0, 1), targets.flatten())
        cost, active = gates.price()
        optimiser.zero_grad()
        (loss + options.price * cost).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step, totals = step + 1, totals + (float(loss.detach()), active)
        if step % 10 == 0:
            print(f"step {step}: loss {totals[0] / 10:.3f}, active {totals[1] / 10:.3f}, {minutes:.1f} min", flush=True)
            totals[:] = 0
        if step % 50 == 0:
            torch.save(net.state_dict(), file)
    torch.save(net.state_dict(), file)
    for book, piece in ((name, encode(tokenizer, words)) for name, words in held.items()):
        gates.take()
        loss_held = loss_on(net, piece)
        found = [float((v > 0).float().mean()) for v in gates.take()]
        shares = " ".join(f"{np.mean(found[i :: WIDE.layers]):.3f}" for i in range(WIDE.layers))
        print(f"{book}: perplexity {math.exp(loss_held):.2f}, active gates by layer {shares}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the text, one verse a line")
    parser.add_argument("--verse", type=Path, default=Path("build/verse"), help="folder of verse.pt and tokenizer.json")
    parser.add_argument("--build", type=Path, default=Path("build/verse_wide"), help="checkpoint folder")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--price", type=float, default=PRICE, help="nats for one root mean square of active gates")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.build.mkdir(parents=True, exist_ok=True)
    train(options)


if __name__ == "__main__":
    main()
