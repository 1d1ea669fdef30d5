"""``python -m runnel.tools.decoding.limited GGUF BYTES SECONDS KEPT GROUP``: llama.cpp, which keeps so many tokens, in
a control group whose limit becomes what the interpreter has at that moment and so many bytes. Decodes for so long and
prints the seconds of a token as JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from runnel.tools.decoding import limit
from runnel.tools.decoding.worker import LlamaCpp, tokens_of


def main() -> None:
    """Raises whatever llama.cpp raises; the kernel may end it."""
    import llama_cpp  # type: ignore[import-not-found,unused-ignore]  # noqa: F401  # counts as the interpreter's

    gguf, budget, lasting, kept = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    group = limit.at(Path(sys.argv[5]))
    assert group is not None
    group.set_limit(group.used + budget)
    begun = time.monotonic()
    run = LlamaCpp(gguf, repack=False, capacity=kept)
    tokens = tokens_of(kept)
    run.start(tokens[:1])
    first = time.monotonic() - begun
    seconds = []
    for token in tokens[1:]:
        begun = time.monotonic()
        run.step(int(token))
        seconds.append(time.monotonic() - begun)
        if sum(seconds) > lasting and len(seconds) > 4:
            break
    print(json.dumps({"seconds": statistics.median(seconds[2:]), "first": first, "tokens": len(seconds)}))


if __name__ == "__main__":
    main()
