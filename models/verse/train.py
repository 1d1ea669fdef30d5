"""Train the decoder on the CPU.

    bible -f gen1:1-rev22:21 > build/verse/kjv.txt          (Debian's package bible-kjv)
    python -m runnel.models.verse.train --text build/verse/kjv.txt --build build/verse --minutes 50

Saves `tokenizer.json` and `verse.pt` in the build folder; then run export.py.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .constants import CONTEXT
from .network import Decoder
from .text import encode, split, train_tokenizer

BATCH = 12
PEAK_RATE = 4e-3
WARMUP = 0.02
DECAY = 0.05


def examples(rng: np.random.Generator, tokens: NDArray[np.int64], batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """Random pieces of the text, each behind the token that begins a text: (inputs, targets), each (batch, CONTEXT)."""
    starts = rng.integers(len(tokens) - CONTEXT, size=batch)
    rows = np.stack([np.concatenate([[0], tokens[s : s + CONTEXT]]) for s in starts])
    return torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])


def learning_rate(done: float, peak: float = PEAK_RATE) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak; ``done`` runs from 0 to 1."""
    if done < WARMUP:
        return peak * (done + 0.001) / WARMUP
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))))


def adam(net: Decoder) -> torch.optim.AdamW:
    """Weight decay on matrices, none on vectors."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )


@torch.no_grad()
def loss_on(net: Decoder, tokens: NDArray[np.int64]) -> float:
    """Mean loss in nats a token over pieces of CONTEXT tokens."""
    count = (len(tokens) - 1) // CONTEXT
    losses = []
    for i in range(count):
        piece = torch.from_numpy(np.concatenate([[0], tokens[i * CONTEXT : (i + 1) * CONTEXT]]))[None]
        losses.append(float(F.cross_entropy(net(piece[:, :-1])[0], piece[0, 1:])))
    return float(np.mean(losses))


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    text, held = split(options.text)
    tokenizer = train_tokenizer(text)
    tokenizer.save(str(options.build / "tokenizer.json"))
    tokens = encode(tokenizer, text)
    test = {book: encode(tokenizer, words) for book, words in held.items()}
    net = Decoder()
    optimiser = adam(net)
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{len(tokens)} tokens, {parameters} parameters", flush=True)
    began, step, total = time.monotonic(), 0, 0.0
    while (minutes := (time.monotonic() - began) / 60) < options.minutes:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(minutes / options.minutes)
        inputs, targets = examples(rng, tokens)
        loss = F.cross_entropy(net(inputs).flatten(0, 1), targets.flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step, total = step + 1, total + float(loss.detach())
        if step % 50 == 0:
            print(f"step {step}: loss {total / 50:.3f}, {minutes:.1f} min", flush=True)
            total = 0.0
        if step % 500 == 0:
            torch.save(net.state_dict(), options.build / "verse.pt")
    torch.save(net.state_dict(), options.build / "verse.pt")
    for book, piece in test.items():
        loss_held = loss_on(net, piece)
        print(f"{book}: {loss_held:.3f} nats a token, perplexity {math.exp(loss_held):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the text, one verse a line")
    parser.add_argument("--build", type=Path, default=Path("build/verse"), help="checkpoint folder")
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.build.mkdir(parents=True, exist_ok=True)
    train(options)


if __name__ == "__main__":
    main()
