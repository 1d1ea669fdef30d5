"""Train the decoder with experts from verse on, on the CPU, and write it as ONNX.

    bible -f gen1:1-rev22:21 > build/verse/kjv.txt          (Debian's package bible-kjv)
    python -m runnel.models.verse_experts.train --text build/verse/kjv.txt --out build/verse_experts

Saves `verse_experts.onnx` (20 MB, so it is not part of the repository) and, beside it, verse's tokenizer.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..verse.text import encode, split
from .export import deviation, write
from .network import VERSE, Decoder

BATCH, CONTEXT = 2, 512
PEAK_RATE = 2e-3
WARMUP = 0.03


def rate(done: float) -> float:
    """Linear warm-up, then half a cosine; ``done`` runs from 0 to 1."""
    falling = 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
    return PEAK_RATE * min((done + 0.001) / WARMUP, 0.02 + 0.98 * falling)


@torch.no_grad()
def perplexity(net: Decoder, tokens: NDArray[np.int64]) -> float:
    """A token, over pieces of CONTEXT tokens."""
    losses = []
    for at in range(0, len(tokens) - CONTEXT, CONTEXT):
        piece = torch.from_numpy(np.concatenate([[0], tokens[at : at + CONTEXT]]))[None]
        losses.append(float(F.cross_entropy(net(piece[:, :-1])[0], piece[0, 1:])))
    return math.exp(float(np.mean(losses)))


def train(options: argparse.Namespace) -> Decoder:
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    text, held = split(options.text)
    tokenizer = Tokenizer.from_file(str(VERSE.with_name("tokenizer.json")))
    tokens = encode(tokenizer, text)
    net = Decoder()
    optimiser = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.98), weight_decay=0.02)
    began, step, total = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - began) / 60 / options.minutes) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate(done)
        starts = rng.integers(len(tokens) - CONTEXT, size=BATCH)
        rows = torch.from_numpy(np.stack([np.concatenate([[0], tokens[s : s + CONTEXT]]) for s in starts]))
        loss = F.cross_entropy(net(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        uneven, changing = (
            torch.stack([getattr(m, name) for m in net.mixtures]).mean() for name in ("uneven", "changing")
        )
        optimiser.zero_grad()
        (loss + options.even * uneven + options.price * changing).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step, total = step + 1, total + float(loss.detach())
        if step % 20 == 0:
            chosen = f"uneven {float(uneven):.2f}, changing {float(changing):.2f}"
            print(f"step {step}: loss {total / 20:.3f}, {chosen}", flush=True)
            total = 0.0
    for book, words in held.items():
        print(f"{book}: perplexity {perplexity(net, encode(tokenizer, words)):.2f} a token", flush=True)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the text, one verse a line")
    parser.add_argument("--out", type=Path, default=Path("build/verse_experts"), help="folder for the model")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--even", type=float, default=0.03, help="price of choosing some experts more often")
    parser.add_argument("--price", type=float, default=1.0, help="of choosing other experts than the token before")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    net = train(options).eval()
    data = write(net)
    (options.out / "verse_experts.onnx").write_bytes(data)
    shutil.copyfile(VERSE.with_name("tokenizer.json"), options.out / "tokenizer.json")
    print(f"{len(data)} bytes, onnxruntime differs from PyTorch by {deviation(net, data):.1e} of the range", flush=True)


if __name__ == "__main__":
    main()
