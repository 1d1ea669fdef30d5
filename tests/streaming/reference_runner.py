"""A readable runner of the portable form: any chunking in, exactly the frames that are certain out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from runnel.compiler.streaming.clocks import evaluate
from runnel.compiler.streaming.emit import PortableForm
from runnel.errors import StreamError

Frames = dict[str, np.ndarray]
STACKED = -1
MOST_STEPS_AFTER_THE_END = 1 << 16


def poison(dtype: np.dtype[Any]) -> Any:
    """What no result may depend on: NaN; for numbers of table rows a number that is valid but not the usual zero."""
    return np.nan if dtype.kind == "f" else 5


class ReferenceRunner:
    """One stream of a portable form. Input slots behind the end of the stream hold NaN."""

    def __init__(
        self, form: PortableForm, shortest: int = 1, remainders: tuple[int, tuple[int, ...]] = (1, (0,)),
        statics: Frames | None = None,
    ) -> None:  # fmt: skip
        self.shortest, self.remainders = shortest, remainders
        self.statics = statics or {}
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # At the extended level onnxruntime 1.31 fuses Transpose and MatMul by a vector into a wrong product.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 4
        self.session = ort.InferenceSession(form.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.manifest = form.manifest()
        self.hop = form.hop
        self.takes = {p.name for p in self.session.get_inputs()}
        self.gives = [p.name for p in self.session.get_outputs()]
        self.inputs = {i["name"]: i for i in self.manifest["inputs"]}
        self.outputs = {o["name"]: o for o in self.manifest["outputs"]}
        self.reset()

    def reset(self) -> None:
        self.position = self.received = 0
        self.waiting: Frames = {}
        self.pending: dict[str, list[np.ndarray]] = {n: [] for n in self.outputs}
        self.states = {
            s["in"]: np.full(s["shape"], s["fill"], s["dtype"]) if s["values"] is None else s["values"]
            for s in self.manifest["states"]
        }

    def push(self, x: Frames) -> Frames:
        """Frames along each input's time axis; gives every output frame that the calls they fill carry."""
        for name, port in self.inputs.items():
            held = self.waiting.get(name)
            self.waiting[name] = x[name] if held is None else np.concatenate([held, x[name]], max(port["axis"], 0))
        name, port = next(iter(self.inputs.items()))
        frames = self._frames_a_call(port)
        self.received += x[name].shape[max(port["axis"], 0)] * self.hop // frames
        while self.waiting[name].shape[max(port["axis"], 0)] >= frames:
            self._step(self.manifest["unknown_length"])
        return {n: self._take(n) for n, o in self.outputs.items() if not {"tail", "after"} & o.keys()}

    def flush(self) -> Frames:
        """The end: every frame still owed, and the outputs known only now."""
        total = self.received
        if total < self.shortest:
            raise StreamError(f"the offline model takes no fewer than {self.shortest} frames")
        if total % self.remainders[0] not in self.remainders[1]:
            raise StreamError(f"the offline model does not take {total} frames")
        lengths = {n: self._length(n, total) for n in self.outputs}
        waited = [w for o in self.outputs.values() for w in o.get("after", [o])]
        for _ in range(MOST_STEPS_AFTER_THE_END):
            if self.position >= total and all(self._computed(w) >= evaluate(w["length"], total)[-1] for w in waited):
                break
            self._step(total)
        else:
            raise RuntimeError("the stream does not end")
        return {n: self._tail(n, lengths[n]) if "tail" in o else self._take(n) for n, o in self.outputs.items()}

    def _frames_a_call(self, port: dict[str, Any]) -> int:
        return 1 if port["axis"] == STACKED else int(port["shape"][port["axis"]])

    def _length(self, name: str, t: int) -> int:
        return evaluate(self.outputs[name]["length"], t)[-1]

    def _computed(self, o: dict[str, Any]) -> int:
        """How many frames the calls so far have carried, those before frame 0 counted as negative."""
        return self.position * o["frames"] // self.hop - o["delay"]

    def _step(self, length: int) -> None:
        feeds: Frames = self.states | self.statics
        for name, port in self.inputs.items():
            axis, held = max(port["axis"], 0), self.waiting[name]
            frames = self._frames_a_call(port)
            chunk, self.waiting[name] = np.split(held, [min(frames, held.shape[axis])], axis)
            if chunk.shape[axis] < frames:
                missing = list(chunk.shape)
                missing[axis] = frames - missing[axis]
                chunk = np.concatenate([chunk, np.full(missing, poison(chunk.dtype), chunk.dtype)], axis)
            feeds[name] = chunk[0] if port["axis"] == STACKED else chunk
        feeds[self.manifest["position"]] = np.array(self.position, np.int64)
        feeds[self.manifest["length"]] = np.array(length, np.int64)
        results = dict(zip(self.gives, self.session.run(None, {k: v for k, v in feeds.items() if k in self.takes})))
        self.states = {s["in"]: results[s["out"]] for s in self.manifest["states"]}
        for name in self.outputs:
            self._keep(name, results[name], length)
        self.position += self.hop

    def _keep(self, name: str, value: np.ndarray, length: int) -> None:
        """Drops what lies before frame 0 and behind the output's own length."""
        o = self.outputs[name]
        if "tail" in o or "after" in o:
            self.pending[name] = [value]
            return
        first = self._computed(o)
        start, stop = max(0, -first), min(o["frames"], self._length(name, length) - first)
        value = value[None] if o["axis"] == STACKED else value
        self.pending[name].append(np.take(value, range(start, max(start, stop)), max(o["axis"], 0)))

    def _take(self, name: str) -> np.ndarray:
        pieces, self.pending[name] = self.pending[name], []
        if "after" in self.outputs[name]:
            return pieces[0]
        return np.concatenate(pieces, max(self.outputs[name]["axis"], 0)) if pieces else self._nothing(name)

    def _nothing(self, name: str) -> np.ndarray:
        port = next(p for p in self.session.get_outputs() if p.name == name)
        o = self.outputs[name]
        shape = (
            [0, *port.shape] if o["axis"] == STACKED else [0 if a == o["axis"] else d for a, d in enumerate(port.shape)]
        )
        dtypes = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(bool)": "bool"}
        return np.zeros(shape, dtypes.get(port.type, port.type.removeprefix("tensor(").removesuffix(")")))

    def _tail(self, name: str, length: int) -> np.ndarray:
        o = self.outputs[name]
        start, stop = o["tail"]
        value = self.pending[name][0]
        whole = value.shape[o["axis"]]
        return np.take(value, range(max(0, whole - max(0, min(start, length) - min(stop, length))), whole), o["axis"])
