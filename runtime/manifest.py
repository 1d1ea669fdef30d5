"""The bundle's manifest, checked key by key before anything in it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from runnel.errors import BundleError

SCHEMA = 1
KEYS = frozenset(
    {
        "schema", "name", "program_hash", "target", "entries", "weights", "hop", "clock", "inputs", "outputs",
        "latency_frames", "mode", "window", "backends", "native_refusal", "onnx", "proof", "modes", "kv", "macs",
        "kernels", "made_by",
    }
)  # fmt: skip
MAX_HOP = 1 << 24
MAX_DIMENSION = 1 << 31
DTYPES = frozenset({"float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool"})
HEX64 = re.compile(r"[0-9a-f]{64}\Z")


def parse_manifest(text: bytes, path: str) -> dict[str, Any]:
    """The manifest as data. Raises BundleError naming the key that is wrong."""
    try:
        manifest = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise BundleError(f"'{path}': the manifest is not JSON; compile the model again.")
    schema = manifest.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(f"'{path}' has bundle schema {schema} and this runnel reads up to {SCHEMA}; update runnel.")
    checker = _Checker(path)
    checker.need(schema == SCHEMA and not isinstance(schema, bool), "schema")
    if odd := sorted(manifest.keys() ^ KEYS):
        raise checker.wrong(odd[0], "is unknown" if odd[0] in manifest else "is missing")
    checker.check(manifest)
    return manifest


def _is_layer(layer: Any) -> bool:
    """Whether this says what the experts of a layer have."""
    texts = ("node", "summary")
    return isinstance(layer, dict) and all(isinstance(layer.get(key), str) for key in texts)


class _Checker:
    def __init__(self, path: str) -> None:
        self.path = path

    def wrong(self, key: str, how: str = "has a value that makes no sense") -> BundleError:
        return BundleError(f"'{self.path}': the manifest's key '{key}' {how}; compile the model again.")

    def need(self, condition: bool, key: str) -> None:
        if not condition:
            raise self.wrong(key)

    def number(self, value: Any, key: str, low: int, high: int) -> None:
        self.need(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high, key)

    def check(self, m: Mapping[str, Any]) -> None:
        self.need(isinstance(m["name"], str), "name")
        self.need(isinstance(m["program_hash"], str) and bool(HEX64.match(m["program_hash"])), "program_hash")
        self.number(m["hop"], "hop", 1, MAX_HOP)
        self.number(m["latency_frames"], "latency_frames", 0, 1 << 62)
        self.need(m["mode"] in ("sequence", "window", "exact", "reuse"), "mode")
        for key in ("target", "entries", "weights", "clock", "proof", "modes", "macs"):
            self.need(isinstance(m[key], dict), key)
        self._window(m["window"])
        self.need(m["onnx"] is None or isinstance(m["onnx"], dict), "onnx")
        self.need(m["kv"] is None or isinstance(m["kv"], dict), "kv")
        self.need(m["native_refusal"] is None or isinstance(m["native_refusal"], str), "native_refusal")
        backends = m["backends"]
        self.need(isinstance(backends, list) and bool(backends), "backends")
        self.need(all(isinstance(b, str) for b in backends), "backends")
        self._target(m["target"])
        self._clock(m["clock"])
        self._entries(m["entries"])
        self._weights(m["weights"], m["entries"])
        self._modes(m["modes"])
        for key in ("inputs", "outputs"):
            ports = m[key]
            self.need(isinstance(ports, list) and bool(ports), key)
            for port in ports:
                self._port(port, key)
            self.need(len({port["name"] for port in ports}) == len(ports), key)
        order = [port.get("per_tick", 1) == 0 for port in m["inputs"]]
        self.need(order == sorted(order) and not order[0], "inputs")

    def _target(self, target: Mapping[str, Any]) -> None:
        self.need(all(isinstance(target.get(k), str) for k in ("name", "arch", "os")), "target")
        features = target.get("features")
        self.need(isinstance(features, list) and all(isinstance(f, str) for f in features), "target")
        self.need(isinstance(target.get("glibc", ""), str), "target")
        self.number(target.get("page_bytes", 4096), "target", 1 << 12, 1 << 16)

    def _clock(self, clock: Mapping[str, Any]) -> None:
        rate = clock.get("rate")
        self.number(clock.get("ahead", 1), "clock", 1, MAX_HOP)
        self.need(rate is None or (isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0), "clock")
        self.number(clock.get("shortest", 0), "clock", 0, 1 << 44)
        lengths = clock.get("lengths", [1, [0]])
        self.need(isinstance(lengths, list) and len(lengths) == 2 and isinstance(lengths[1], list), "clock")
        self.number(lengths[0], "clock", 1, MAX_HOP)
        self.need(bool(lengths[1]), "clock")
        for rest in lengths[1]:
            self.number(rest, "clock", 0, lengths[0] - 1)
        if (most := clock.get("max_frames")) is not None:
            self.number(most, "clock", 1, 1 << 44)
        self.need(isinstance(clock.get("max_frames_reason", ""), str), "clock")

    def _entries(self, entries: Mapping[str, Any]) -> None:
        for entry in entries.values():
            self.need(isinstance(entry, dict), "entries")
            self.number(entry.get("bytes"), "entries", 0, 1 << 62)
            self.need(isinstance(entry.get("sha256"), str) and bool(HEX64.match(entry["sha256"])), "entries")

    def _weights(self, weights: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
        if not weights:
            return
        self.need(isinstance(weights.get("layout"), str) and isinstance(weights.get("segments"), list), "weights")
        entry = entries.get(f"weights/{weights['layout']}")
        self.need(entry is not None, "weights")
        covered = 0
        for segment in weights["segments"]:
            self.need(isinstance(segment, dict) and segment.get("offset") == covered, "weights")
            self.number(segment.get("bytes"), "weights", 1, 1 << 62)
            self.number(segment.get("crc32c"), "weights", 0, (1 << 32) - 1)
            covered += segment["bytes"]
        assert entry is not None
        self.need(covered == entry["bytes"], "weights")

    def _window(self, window: Any) -> None:
        """Of window mode: frames, hop, mode, and the NRMSE of what windows reuse, None where the result is exact."""
        if window is None:
            return
        self.need(isinstance(window, dict) and window.keys() == {"frames", "hop", "mode", "nrmse"}, "window")
        self.number(window["frames"], "window", 1, MAX_HOP)
        self.number(window["hop"], "window", 1, MAX_HOP)
        self.need(window["mode"] in ("exact", "reuse"), "window")
        nrmse = window["nrmse"]
        self.need(nrmse is None or (isinstance(nrmse, float) and 0 <= nrmse < float("inf")), "window")

    def _modes(self, modes: Mapping[str, Any]) -> None:
        """Named modes: {} where the stream is exact, otherwise what was used and what it costs."""
        if not modes:
            return
        used, recording = modes.get("used"), modes.get("calibration")
        self.need(modes.keys() == {"used", "deviation", "calibration"}, "modes")
        self.need(isinstance(used, dict) and bool(used) and isinstance(modes["deviation"], dict), "modes")
        self.need(isinstance(recording, dict) and recording.keys() == {"name", "frames", "sha256"}, "modes")
        for mode in used.values() if isinstance(used, dict) else ():
            self.need(
                isinstance(mode, dict) and mode.keys() - {"why", "layers"} == {"value", "nodes", "deviation"}, "modes"
            )
            self.need(isinstance(mode["value"], str) and isinstance(mode["nodes"], list), "modes")
            self.need(all(isinstance(node, str) for node in mode["nodes"]), "modes")
            self.need(mode["deviation"] is None or isinstance(mode["deviation"], dict), "modes")
            self.need(isinstance(mode.get("why", ""), str), "modes")
            layers = mode.get("layers", [])
            self.need(isinstance(layers, list) and all(map(_is_layer, layers)), "modes")

    def _port(self, port: Any, key: str) -> None:
        self.need(isinstance(port, dict) and isinstance(port.get("name"), str), key)
        self.need(port.get("dtype") in DTYPES, key)
        shape, axis = port.get("shape"), port.get("axis")
        self.need(isinstance(shape, list) and len(shape) <= 32, key)
        for dimension in shape:
            if dimension is not None:
                self.number(dimension, key, 0, MAX_DIMENSION)
        per_tick, rate = port.get("per_tick", 1), port.get("rate")
        self.number(per_tick, key, 0, 1 << 31)
        self.need(rate is None or (isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0), key)
        self.need(per_tick > 0 or axis is None, key)
        timed = [i for i, dimension in enumerate(shape) if dimension is None]
        self.need(timed == ([] if axis is None else [axis]), key)
        frame = np.dtype(port["dtype"]).itemsize
        for dimension in shape:
            frame *= 1 if dimension is None else dimension
        self.need(0 < frame <= MAX_DIMENSION, key)
