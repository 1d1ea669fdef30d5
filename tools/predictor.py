"""Train the predictors that ``runnel compile --sparse predicted=FILE`` reads, on the model itself.

    python -m runnel.tools.predictor model.onnx --data recording.npy --rank 32 --out predictor.npz

For each feed-forward layer with Relu: the model is run on the recording, and a product of two narrow matrices is fitted
to which neurons are active, from the largest singular values of the gates' own matrix on (logistic regression, Adam).
Biases are then raised until the neurons that are left out make up at most ``--miss`` of what all neurons of a layer
give, by the norms of their parts of its output, on a tenth of the recording that was not learned from.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runnel.compiler.lowering.neurons import FeedForward, with_neurons
from runnel.errors import InputError
from runnel.files import replacing, writable
from runnel.tools.activity import gates, readings
from runnel.tools.build import rewrite
from runnel.tools.calibrate import read_calibration
from runnel.tools.request import Request
from runnel.tools.units import positive

BATCH = 512
RATE = 2e-3
HELD = 0.1
EARLY, LATE = 0.9, 0.999  # how long Adam remembers
SEARCH = 24


@dataclass
class Predictor:
    """score = (x · first) · second + bias; first: (inputs, rank), second: (rank, neurons)."""

    first: np.ndarray
    second: np.ndarray
    bias: np.ndarray

    def score(self, x: np.ndarray) -> np.ndarray:
        """x (frames, inputs) → (frames, neurons)."""
        return (x @ self.first) @ self.second + self.bias


@dataclass(frozen=True)
class Figures:
    """Shares of a layer's neurons that are active and that are predicted to be; of what active neurons give, the share
    that is missed."""

    active: float
    predicted: float
    missed: float


def given(layer: FeedForward, x: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """The norm of what each neuron adds to the output, (frames, neurons)."""
    value = np.maximum(gate, 0)
    value = value * value if layer.squared else value
    if layer.gate is not None:
        up = x @ layer.up
        value = value * (up if layer.up_bias is None else up + layer.up_bias)
    return np.abs(value) * np.linalg.norm(layer.down, axis=1)


def begun(layer: FeedForward, rank: int) -> Predictor:
    """The best approximation of the gates by so few singular values."""
    weight, bias = (layer.up, layer.up_bias) if layer.gate is None else (layer.gate, layer.gate_bias)
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    root = np.sqrt(s[:rank])
    first, second = (u[:, :rank] * root).astype(np.float32), (root[:, None] * v[:rank]).astype(np.float32)
    return Predictor(first, second, np.zeros(weight.shape[1], np.float32) if bias is None else bias.copy())


def fitted(layer: FeedForward, x: np.ndarray, rank: int, steps: int, seed: int) -> Predictor:
    """A predictor of which neurons are active for x (frames, inputs)."""
    p, rng = begun(layer, rank), np.random.default_rng(seed)
    scale = 1 / max(float(np.std(gates(layer, x[:BATCH]))), 1e-9)  # so that a score is about a logit
    p.second, p.bias = p.second * np.float32(2 * scale), p.bias * np.float32(2 * scale)
    parameters = [p.first, p.second, p.bias]
    means, squares = [np.zeros_like(v) for v in parameters], [np.zeros_like(v) for v in parameters]
    for step in range(1, steps + 1):
        rows = x[rng.integers(len(x), size=BATCH)]
        active = gates(layer, rows) > 0
        low = rows @ p.first
        score = low @ p.second + p.bias
        error = (1 / (1 + np.exp(-np.clip(score, -30, 30))) - active) / BATCH
        gradients = [rows.T @ (error @ p.second.T), low.T @ error, error.sum(0)]
        rate = RATE * min(1.0, 2 * (1 - step / (steps + 1)))
        for value, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
            mean += (1 - EARLY) * (gradient - mean)
            square += (1 - LATE) * (gradient * gradient - square)
            moved = mean / (1 - EARLY**step) / (np.sqrt(square / (1 - LATE**step)) + 1e-9)
            value -= (rate * moved).astype(np.float32)
    return p


def raised(p: Predictor, layer: FeedForward, x: np.ndarray, miss: float) -> Figures:
    """Add the least to the biases with which at most ``miss`` of what neurons give is left out for x, in place."""
    gate = gates(layer, x)
    weight, score = given(layer, x, gate), p.score(x)
    total = max(float(weight.sum()), 1e-30)
    low, high = -float(score.max()) - 1, -float(score.min()) + 1
    for _ in range(SEARCH):
        middle = (low + high) / 2
        missed = float(weight[score + middle <= 0].sum()) / total
        low, high = (middle, high) if missed > miss else (low, middle)
    p.bias += np.float32(high)
    chosen = p.score(x) > 0
    return Figures(float((gate > 0).mean()), float(chosen.mean()), float(weight[~chosen].sum()) / total)


def train(
    model: str | Path, data: str | Path, rank: int, steps: int, miss: float, piece: int, seed: int
) -> tuple[dict[str, np.ndarray], list[tuple[str, Figures]]]:
    """The arrays of a predictor's file, and each layer's figures. Raises InputError."""
    rewritten = rewrite(model, Request(max_frames=piece))
    layers = [n for n in with_neurons(rewritten.graph)[0].nodes if isinstance(n, FeedForward)]
    if not layers:
        raise InputError("the model has no feed-forward layer whose neurons a Relu sets to zero.")
    _, arrays = read_calibration(data, rewritten.graph.inputs, None)
    result: dict[str, np.ndarray] = {}
    figures = []
    for layer, x in zip(layers, readings(rewritten, layers, arrays, piece), strict=True):
        held = max(1, int(len(x) * HELD))
        if len(x) < 2 * held:
            raise InputError(f"the recording has {len(x)} frames, too few to train on; give a longer one.")
        p = fitted(layer, x[:-held], min(rank, *layer.up.shape), steps, seed)
        figures.append((layer.name, raised(p, layer, x[-held:], miss)))
        result |= {f"{layer.name}/in": p.first, f"{layer.name}/out": p.second, f"{layer.name}/bias": p.bias}
    return result, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the ONNX model")
    parser.add_argument("--data", type=Path, required=True, help="what to run it on: .npy, .npz by input name, or .wav")
    parser.add_argument("--rank", type=positive, default=32, help="columns of the narrow matrix (default: 32)")
    parser.add_argument("--steps", type=positive, default=400, help="steps of a layer's training (default: 400)")
    parser.add_argument("--miss", type=float, default=0.01, help="the share that may be left out (default: 0.01)")
    parser.add_argument("--piece", type=positive, default=512, help="frames that the model is run on at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("predictor.npz"))
    args = parser.parse_args()
    out = writable(args.out)
    try:
        arrays, figures = train(args.model, args.data, args.rank, args.steps, args.miss, args.piece, args.seed)
    except InputError as error:
        raise SystemExit(f"runnel: {error}") from None
    with replacing(out) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    for name, f in figures:
        print(f"{name}: {f.active:.3f} of the neurons active, {f.predicted:.3f} predicted, {f.missed:.4f} missed")


if __name__ == "__main__":
    main()
