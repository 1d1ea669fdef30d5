"""Feed-forward layers whose active neurons are foretold by a low-rank predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from relu_layers import NEURONS, WIDTH, convolutions, network

import runnel
from runnel.errors import InputError
from runnel.tools import predictor

RNG = np.random.default_rng(8)
FORMS = ("gated_second", "plain", "squared")


def frames(count: int = 24) -> np.ndarray:
    return RNG.standard_normal((1, count, WIDTH)).astype(np.float32)


def play(program: runnel.Program, x: np.ndarray, chunk: int = 5) -> np.ndarray:
    stream = program.stream()
    chunks = np.split(x, range(chunk, x.shape[1], chunk), axis=1)
    return np.concatenate([*(stream.push(c) for c in chunks), stream.flush()], 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    path.write_bytes(network(*FORMS))
    return path


@pytest.fixture(scope="module")
def trained(model: Path) -> dict[str, np.ndarray]:
    data = model.parent / "data.npy"
    np.save(data, frames(4000))
    arrays, figures = predictor.train(model, data, rank=16, steps=150, miss=0.02, piece=512, seed=0)
    assert len(figures) == len(FORMS)
    for _, f in figures:
        assert f.missed <= 0.021
        assert f.active < f.predicted < 0.8
    return arrays


def compiled(model: Path, arrays: dict[str, np.ndarray], folder: Path, **options: object) -> runnel.Program:
    np.savez(folder / "p.npz", **arrays)  # type: ignore[arg-type]
    runnel.compile(model, folder / "p.rnl", backend="native", hop=4, sparse=f"predicted={folder / 'p.npz'}", **options)
    return runnel.load(folder / "p.rnl")


def altered(arrays: dict[str, np.ndarray], bias: float) -> dict[str, np.ndarray]:
    return {k: np.full_like(v, bias) if k.endswith("bias") else v for k, v in arrays.items()}


def test_a_predictor_is_a_named_mode_with_its_deviation(
    model: Path, trained: dict[str, np.ndarray], tmp_path: Path
) -> None:
    x = frames(200)
    program = compiled(model, trained, tmp_path, calibration=x)
    told = program.manifest["modes"]
    assert told["used"]["sparse"]["value"] == "predicted"
    assert len(told["used"]["sparse"]["nodes"]) == len(FORMS)
    (deviation,) = told["deviation"].values()
    assert 1e-6 < deviation["rms"] < 0.1
    runnel.compile(model, tmp_path / "d.rnl", backend="native", hop=4)
    expected, got = play(runnel.load(tmp_path / "d.rnl"), x), play(program, x)
    rms = np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean())
    assert rms == pytest.approx(deviation["rms"], rel=0.01)


def test_bits_do_not_depend_on_what_is_in_memory(model: Path, trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    whole, x = compiled(model, trained, tmp_path), frames()

    def paged(ram: int) -> runnel.Program:
        return runnel.load(tmp_path / "p.rnl", runtime=runnel.Runtime(ram=ram))

    least = paged(1 << 30).paging.least
    for ram in (least, least + 50_000, 1 << 30):
        program = paged(ram)
        for chunk in (1, 7):
            assert play(program, x, chunk).tobytes() == play(whole, x, chunk).tobytes()
        assert program.paging.units.all == sum(  # gate, up and down, or up and down, of 48 float32 each
            NEURONS * rows * 192 for rows in (3, 2, 2)
        )


def test_every_neuron_predicted_is_the_dense_result(
    model: Path, trained: dict[str, np.ndarray], tmp_path: Path
) -> None:
    program = compiled(model, altered(trained, 1e6), tmp_path)
    runnel.compile(model, tmp_path / "d.rnl", backend="native", hop=4)
    x = frames()
    expected = play(runnel.load(tmp_path / "d.rnl"), x)
    assert np.abs(play(program, x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_no_neuron_predicted_adds_the_bias_alone(model: Path, trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    program = compiled(model, altered(trained, -1e6), tmp_path)
    x = frames(3)
    difference = play(program, x) - x
    assert np.abs(difference - difference[:, :1]).max() < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {k: v for k, v in a.items() if not k.startswith(sorted(a)[0].split("/")[0] + "/")}, "has no"),
        (lambda a: {k: v[..., :-1] for k, v in a.items()}, "shapes"),
        (lambda a: {k: np.full_like(v, np.nan) for k, v in a.items()}, "not finite"),
    ],
)
def test_predictors_that_do_not_fit(
    change: object, words: str, model: Path, trained: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        compiled(model, change(trained), tmp_path)  # type: ignore[operator]


def test_files_that_are_no_predictors(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.npz").write_bytes(b"PK\x03\x04 no archive")
    for name in ("p.npz", "absent.npz"):
        with pytest.raises(InputError, match="cannot be read"):
            runnel.compile(model, tmp_path / "m.rnl", sparse=f"predicted={tmp_path / name}")
    with pytest.raises(InputError, match="exact or predicted=FILE"):
        runnel.compile(model, tmp_path / "m.rnl", sparse="guessed")


def test_convolutions_have_no_predicted_form(trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    parts = {"in": np.ones((WIDTH, 4)), "out": np.ones((4, NEURONS)), "bias": np.ones(NEURONS)}
    np.savez(tmp_path / "p.npz", **{f"conv2/{k}": v.astype(np.float32) for k, v in parts.items()})
    with pytest.raises(InputError, match="no form with a predictor"):
        runnel.compile(convolutions(), tmp_path / "m.rnl", sparse=f"predicted={tmp_path / 'p.npz'}")
