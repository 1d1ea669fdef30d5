"""``python -m runnel.models.streaminnc.export FOLDER [--seed N]``: writes acc.onnx, eeg.onnx and ppg.onnx."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from runnel.models.streaminnc.networks import NETWORKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, make in NETWORKS.items():
        onnx.save(make(args.seed), args.folder / f"{name}.onnx")
        print(args.folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
