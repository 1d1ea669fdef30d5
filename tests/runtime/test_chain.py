"""Programs in a row: what fits what, what a failure leaves behind, and that a chain is a stream like any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from runnel.errors import InputError, StreamError
from runnel.runtime.chain import Chain
from runnel.runtime.program import Array, Program, Result, Stream, checked_inputs


class Pairs(Program):
    """Sums of ``size`` neighbouring frames, as a program; what is left over comes at the end. 1300 is refused."""

    backend = "numpy"

    def __init__(
        self, name: str, shape: list[Any], out: list[Any], size: int = 1, states: int = 0, **ports: Any
    ) -> None:
        port = {"name": "x", "dtype": "float32", "shape": shape, "axis": shape.index(None)}
        names = ["y", *(f"s{i}_out" for i in range(states))]
        outputs = [{"name": n, "dtype": "float32", "shape": out, "axis": out.index(None)} for n in names]
        own = [{"out": f"s{i}_out"} for i in range(states)]
        onnx = {"hop": size, "outputs": [{"name": "y", "frames": 1}], "states": own}
        manifest = {"name": name, "hop": size, "latency_frames": size - 1, "clock": {"rate": 100.0}, "onnx": onnx}
        super().__init__(manifest | {"inputs": [port], "outputs": outputs} | ports)
        self.size = size

    @property
    def state_bytes(self) -> int:
        return 8

    def stream(
        self, state: bytes | None = None, on_nonfinite: str = "error", inputs: Mapping[str, Any] | None = None,
        kv: str | None = None, position: int = 0,
    ) -> PairsStream:  # fmt: skip
        return PairsStream(self, state, on_nonfinite)


class PairsStream(Stream):
    def __init__(self, program: Pairs, state: bytes | None, policy: str) -> None:
        self.program: Pairs = program
        self.policy = policy
        self.reset()
        if state is not None:
            self.restore(state)

    def restore(self, state: bytes) -> None:
        self.waiting = np.frombuffer(state, np.float32).reshape(-1, self.waiting.shape[1])

    def check(self, x: Any) -> None:
        checked_inputs(self.program, x)

    def _set_static(self, name: str, value: Array) -> None:
        raise AssertionError(name)

    def reset(self) -> None:
        self.waiting = np.empty((0, int(np.prod(self.program.inputs[0].sized(1)))), np.float32)
        self.taken = 0

    def push(self, x: Any, out: Result | None = None) -> Result:
        (array,), frames = checked_inputs(self.program, x)
        if not np.isfinite(array).all():
            if self.policy == "error":
                raise StreamError("not finite")
            array = np.nan_to_num(array, nan=0.0)
        if (array == 1300).any():
            raise StreamError("too loud")
        axis = self.program.inputs[0].axis or 0
        rows = np.moveaxis(array, axis, 0).reshape(frames, self.waiting.shape[1])
        self.taken += frames
        self.waiting = np.concatenate([self.waiting, rows])
        whole = len(self.waiting) // self.program.size * self.program.size
        given, self.waiting = self.waiting[:whole], self.waiting[whole:]
        return self._shaped(given.reshape(-1, self.program.size, given.shape[1]).sum(1))

    def flush(self) -> Result:
        given, self.waiting = self.waiting, self.waiting[:0]
        return self._shaped(given.sum(0, keepdims=True) if len(given) else given)

    def _shaped(self, rows: Array) -> Result:
        ports = self.program.outputs
        frame = [n for n in ports[0].shape if n is not None]
        y = np.moveaxis(rows.reshape(len(rows), *frame), 0, ports[0].axis or 0)
        return y if len(ports) == 1 else {"y": y} | {port.name: -y for port in ports[1:]}

    def save(self) -> bytes:
        return self.waiting.tobytes()

    def clone(self) -> PairsStream:
        twin = PairsStream(self.program, None, self.policy)
        twin.waiting, twin.taken = self.waiting.copy(), self.taken
        return twin

    @property
    def position(self) -> int:
        return self.taken


def chain() -> Chain:
    """Sums of 2, with time last, and of 3, with time first and an axis of one: sums of 6."""
    return Chain([Pairs("two", [1, 4, None], [4, None, 1], 2), Pairs("three", [None, 1, 4], [1, None, 4], 3, states=2)])


def sound(frames: int) -> Array:
    return np.random.default_rng(frames).integers(-9, 9, (1, 4, frames)).astype(np.float32)


def expected(x: Array) -> Array:
    return np.stack([x[0, :, n : n + 6].sum(1) for n in range(0, x.shape[2], 6)])[None]


def play(stream: Stream, x: Array, size: int) -> Array:
    pieces = [stream.push(x[:, :, n : n + size]) for n in range(0, x.shape[2], size)]
    return np.concatenate([*pieces, stream.flush()], axis=1)


@pytest.mark.parametrize("frames", [1, 5, 6, 7, 40])
@pytest.mark.parametrize("size", [1, 5, 40])
def test_a_chain_is_one_stream_after_another(frames: int, size: int) -> None:
    x = sound(frames)
    stream = chain().stream()
    np.testing.assert_array_equal(play(stream, x, size), expected(x))
    assert stream.position == frames
    stream.reset()
    np.testing.assert_array_equal(play(stream, x, size), expected(x))


def test_its_figures_count_frames_of_the_first() -> None:
    whole = chain()
    assert (whole.hop, whole.rate, whole.ratio, whole.latency_frames) == (2, 100.0, pytest.approx(1 / 6), 1 + 2 * 2)
    assert whole.state_bytes == 16
    assert [p.name for p in whole.inputs] == ["x"] and [p.name for p in whole.outputs] == ["y"]


def test_snapshots_and_clones_go_on_alike() -> None:
    x = sound(41)
    stream = chain().stream()
    first = stream.push(x[:, :, :17])
    twin, saved = stream.clone(), stream.save()
    for other in (stream, twin, chain().stream(state=saved)):
        rest = np.concatenate([other.push(x[:, :, 17:]), other.flush()], axis=1)
        np.testing.assert_array_equal(np.concatenate([first, rest], axis=1), expected(x))
    for foreign in (b"", b"RNLCHAIN", saved[:-1], saved + b"x", b"x" + saved[1:]):
        with pytest.raises(StreamError, match="another program"):
            chain().stream(state=foreign)


def test_a_failure_inside_asks_for_a_reset_and_one_before_does_not() -> None:
    stream = chain().stream()
    with pytest.raises(StreamError, match="needs float32"):
        stream.push(sound(3)[0])
    stream.push(sound(3))
    inside = np.full((1, 4, 6), 650, np.float32)  # 1300 behind the first program
    for act in (lambda: stream.push(inside), stream.flush, stream.save, lambda: stream.push(sound(2))):
        with pytest.raises(StreamError, match="too loud|out of step"):
            act()
    stream.reset()
    x = sound(30)
    np.testing.assert_array_equal(play(stream, x, 7), expected(x))


def test_nan_starts_all_of_it_again_where_that_is_asked_for() -> None:
    stream = chain().stream(on_nonfinite="reset")
    stream.push(sound(9))
    x = sound(25)
    broken = x.copy()
    broken[0, :, 0] = np.nan
    x[0, :, 0] = 0
    np.testing.assert_array_equal(play(stream, broken, 25), expected(x))
    with pytest.raises(StreamError, match="not finite"):
        chain().stream().push(broken)


def odd(*names: str, **port: Any) -> Program:
    ports = [{"name": name, "dtype": "float32", "shape": [None, 4], "axis": 0} | port for name in names]
    return Pairs("b", [None, 4], [None], inputs=ports)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (Pairs("b", [None, 3], [None, 3]), "cannot be made to fit"),
        (Pairs("b", [2, 2, None], [None]), "cannot be made to fit"),
        (odd("x", "z"), "several inputs"),
        (odd("x", dtype="int8"), "int8"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_names(second: Program, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        Chain([Pairs("a", [None, 4], [4, 1, None]), second])
    assert "'a'" in str(refused.value) and "'b'" in str(refused.value)


def test_nothing_is_no_chain() -> None:
    with pytest.raises(InputError):
        Chain([])


def test_a_batch_of_chains_is_chains_side_by_side():
    x = np.arange(88, dtype=np.float32).reshape(1, 4, 22)
    batch, alone = chain().batch(2), chain().stream()
    one, two = batch.join(), batch.join()
    first = alone.push(x)
    got = batch.push({one: x, two: x[..., :5]})
    assert got[one].tobytes() == first.tobytes() and batch.position(two) == 5
    with pytest.raises(StreamError, match="^lane 1: .*shape"):
        batch.push({one: x, two: x[0]})
    assert batch.position(one) == 22
    assert batch.flush(one).tobytes() == alone.flush().tobytes()
