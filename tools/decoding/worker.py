"""``python -m runnel.tools.decoding.worker RUNTIME FILE`` decodes on one runtime; a line of JSON asks, a line answers.

A runtime that ends the process ends no other. Every turn decodes the same number of tokens from the same place, on one
thread; time is the processor's, so that neighbours on the core are not counted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = 64  # tokens before a turn
CAPACITY = 512
WINDOW = 256  # tokens that caches of ours keep


def tokens_of(count: int, vocabulary: int = 32000) -> np.ndarray:
    """The same random tokens always."""
    return np.random.default_rng(3).integers(0, vocabulary, count)


class Decoding(ABC):
    """A model on a runtime, behind a prompt."""

    @abstractmethod
    def start(self, prompt: np.ndarray) -> np.ndarray:
        """Take the prompt, forgetting what was before; the last token's logits."""

    @abstractmethod
    def rewind(self) -> None:
        """Forget what came behind the prompt."""

    @abstractmethod
    def step(self, token: int) -> np.ndarray:
        """The logits behind one more token."""


class Own(Decoding):
    """A bundle. words: what Runtime takes, such as ram=…"""

    def __init__(self, path: str, **words: Any) -> None:
        import runnel

        self.program = runnel.Runtime(**words).load(path)
        self.stream = self.program.stream()
        self.saved = b""

    def start(self, prompt: np.ndarray) -> np.ndarray:
        self.stream = self.program.stream()
        logits = self.stream.push(prompt[None], last=True)  # type: ignore[call-arg]
        self.saved = self.stream.save()
        return np.asarray(logits).reshape(-1)

    def rewind(self) -> None:
        self.stream = self.program.stream(state=self.saved)

    def step(self, token: int) -> np.ndarray:
        return np.asarray(self.stream.push(np.array([[token]]))).reshape(-1)


class Onnxruntime(Decoding):
    """An ONNX decoder with its caches bound in place. level: MatMulNBits' accuracy_level (4: activations of 8 bits)."""

    def __init__(self, path: str, level: int = 0) -> None:
        import onnx
        import onnxruntime as ort

        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            if node.op_type == "MatMulNBits":
                node.attribute.append(onnx.helper.make_attribute("accuracy_level", level))
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        beside = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.onnx")
        onnx.save(model, beside)
        try:
            self.session = ort.InferenceSession(str(beside), options, providers=["CPUExecutionProvider"])
        finally:
            beside.unlink()
        self.binding = self.session.io_binding()
        self.kept: list[Any] = []
        for value in self.session.get_inputs():
            if value.name.startswith("past"):
                shape = [CAPACITY if isinstance(d, str) else d for d in value.shape]
                cache = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                self.kept.append(cache)
                self.binding.bind_ortvalue_input(value.name, cache)
                self.binding.bind_ortvalue_output(value.name.replace("past_key_values", "present"), cache)
        self.size = self.session.get_outputs()[0].shape[-1]
        self.logits: dict[int, Any] = {}
        self.of_numpy = ort.OrtValue.ortvalue_from_numpy
        self.place = self.begun = 0

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        last = self.place + tokens.size
        self.binding.bind_cpu_input("input_ids", tokens.reshape(1, -1).astype(np.int64))
        self.binding.bind_cpu_input("seqlens_k", np.array([last - 1], np.int32))
        self.binding.bind_cpu_input("total_sequence_length", np.array(last, np.int32))
        if tokens.size not in self.logits:
            self.logits[tokens.size] = self.of_numpy(np.zeros([1, tokens.size, self.size], np.float32))
        self.binding.bind_ortvalue_output("logits", self.logits[tokens.size])
        self.session.run_with_iobinding(self.binding)
        self.place = last
        return np.array(self.logits[tokens.size].numpy()[0, -1])

    def start(self, prompt: np.ndarray) -> np.ndarray:
        self.place = 0
        logits = self._run(prompt)
        self.begun = self.place
        return logits

    def rewind(self) -> None:
        self.place = self.begun

    def step(self, token: int) -> np.ndarray:
        return self._run(np.array([token]))


class LlamaCpp(Decoding):
    """A GGUF on llama.cpp. repack: whether weights may be copied into its own order, which a mapped file's are not.

    capacity: tokens that it keeps, and takes at once.
    """

    def __init__(self, path: str, repack: bool = True, capacity: int = CAPACITY) -> None:
        import llama_cpp  # type: ignore[import-not-found,unused-ignore]

        self.api = api = llama_cpp
        api.llama_backend_init()
        self.log = api.llama_log_callback(lambda level, text, user: None)
        api.llama_log_set(self.log, None)
        about = api.llama_model_default_params()
        about.use_mmap, about.n_gpu_layers, about.use_extra_bufts = True, 0, repack
        self.model = api.llama_model_load_from_file(path.encode(), about)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load '{path}'")
        context = api.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = capacity
        context.n_threads = context.n_threads_batch = 1
        context.no_perf = True
        self.context = api.llama_init_from_model(self.model, context)
        self.memory = api.llama_get_memory(self.context)
        self.size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.begun = 0

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        given = (self.api.llama_token * tokens.size)(*map(int, tokens))
        if code := self.api.llama_decode(self.context, self.api.llama_batch_get_one(given, tokens.size)):
            raise RuntimeError(f"llama.cpp cannot decode (code {code})")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, -1), (self.size,)).copy()

    def start(self, prompt: np.ndarray) -> np.ndarray:
        self.api.llama_memory_clear(self.memory, True)
        self.begun = prompt.size
        return self._run(prompt)

    def rewind(self) -> None:
        self.api.llama_memory_seq_rm(self.memory, 0, self.begun, -1)

    def step(self, token: int) -> np.ndarray:
        return self._run(np.array([token]))


RUNTIMES: dict[str, Any] = {"own": Own, "onnxruntime": Onnxruntime, "llama.cpp": LlamaCpp}


def turn(run: Decoding, count: int, clock: str = "process_time") -> list[float]:
    """Seconds of each token of a turn, after one that is not counted."""
    now = getattr(time, clock)
    run.rewind()
    seconds = []
    for token in tokens_of(PROMPT + count + 1)[PROMPT:]:
        begun = now()
        run.step(int(token))
        seconds.append(now() - begun)
    return seconds[1:]


def main() -> None:
    """Answers until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints is no reply
    words = json.loads(sys.argv[3])
    if "core" in words:
        os.sched_setaffinity(0, {words.pop("core")})
    run: Decoding = RUNTIMES[sys.argv[1]](sys.argv[2], **words)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "start":
            np.save(asked["to"], run.start(tokens_of(PROMPT)))
            reply: dict[str, Any] = {}
        else:
            reply = {"seconds": turn(run, asked["tokens"], asked.get("clock", "process_time"))}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
