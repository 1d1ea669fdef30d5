"""Tokens of the text that was trained on, for predictors and calibration: pieces behind the token that begins a text.

python -m runnel.models.verse_wide.tokens --text build/verse/kjv.txt --verse build/verse --out tokens.npy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ..verse.constants import CONTEXT
from ..verse.text import encode, split

LETTERS = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the text, one verse a line")
    parser.add_argument("--verse", type=Path, default=Path("build/verse"), help="folder of tokenizer.json")
    parser.add_argument("--pieces", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("build/verse_wide/tokens.npy"))
    options = parser.parse_args()
    tokens = encode(Tokenizer.from_file(str(options.verse / "tokenizer.json")), split(options.text)[0][:LETTERS])
    each = CONTEXT - 1
    pieces = [np.concatenate([[0], tokens[i * each : (i + 1) * each]]) for i in range(options.pieces)]
    np.save(options.out, np.concatenate(pieces)[None])


if __name__ == "__main__":
    main()
