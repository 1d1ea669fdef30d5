"""Write the wide decoder as one ONNX file, as verse's is, and compare it with PyTorch.

    python -m runnel.models.verse_wide.export --build build/verse_wide --verse build/verse

Copies the tokenizer beside it. The file has about 32 MB, so it is not part of the repository.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from ..verse.export import build, compare
from ..verse.network import Decoder
from .constants import WIDE


def read(folder: Path) -> Decoder:
    """The trained decoder."""
    net = Decoder(WIDE)
    net.load_state_dict(torch.load(folder / "verse_wide.pt", map_location="cpu", weights_only=True))
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/verse_wide"), help="folder of verse_wide.pt")
    parser.add_argument("--verse", type=Path, default=Path("build/verse"), help="folder of tokenizer.json")
    options = parser.parse_args()
    net = read(options.build)
    data = build(net, "verse_wide").SerializeToString()
    worst = compare(net, data)
    if worst > 1e-5:
        raise SystemExit(f"onnxruntime deviates from PyTorch by {worst:.2e} of the range, more than 1e-5")
    (options.build / "verse_wide.onnx").write_bytes(data)
    shutil.copyfile(options.verse / "tokenizer.json", options.build / "tokenizer.json")
    print(f"verse_wide.onnx: {len(data)} bytes, deviation from PyTorch {worst:.1e} of the range")


if __name__ == "__main__":
    main()
