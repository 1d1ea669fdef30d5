"""Times kernels with TVM's runtime: in this process, on a board that runs TVM's RPC server, or on a shelf of boards."""

from __future__ import annotations

import logging
import shlex
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from runnel.compiler.codegen.context import Arg
from runnel.compiler.codegen.module import object_bytes
from runnel.errors import InputError
from runnel.runtime.build_core import NoCompiler, find_compiler
from runnel.targets import Target
from runnel.tools import toolchain

ROUNDS = 11
LEAST_MS = 1  # of one measurement
CONNECT = 5  # s
TIMEOUT = 120  # s that one measurement may take
TRIES = 3  # measurements of a kernel before boards count as gone

# A function of TVM's calling convention for each kernel: arguments are arrays, whose memory the kernel gets.
_CALL = """
int __tvm_ffi_{name}(void* self, const TVMFFIAny* a, int32_t n, TVMFFIAny* result) {{
  (void)self; (void)n;
  result->type_index = 0; result->v_int64 = 0;
  return {symbol}({pointers});
}}
"""
_HEAD = """
#include <stdint.h>
#include <tvm/ffi/c_api.h>
static void* memory(const TVMFFIAny* a) {
  const char* p = (const char*)a->v_ptr;
  const DLTensor* t = (const DLTensor*)(a->type_index == kTVMFFIDLTensorPtr ? p : p + sizeof(TVMFFIObject));
  return (char*)t->data + t->byte_offset;
}
"""


@dataclass(frozen=True)
class Case:
    """A kernel's symbol in a module, and its arguments for ``rows`` rows."""

    symbol: str
    args: Sequence[Arg]
    rows: int
    out_elements: int

    def arrays(self, random: np.random.Generator) -> list[np.ndarray]:
        """Memory for every pointer, in order."""
        return [array for arg in self.args for array in self._arrays(arg, random)]

    def _arrays(self, arg: Arg, random: np.random.Generator) -> list[np.ndarray]:
        if arg.role == "const":
            assert arg.data is not None
            return [arg.data]
        if arg.role == "share":
            return [np.array([0, 1], np.int32)]
        if arg.role == "number":
            return [np.array([0, -1], np.int64)]
        assert arg.value is not None
        kind = {"bool": "int8"}.get(arg.value.dtype, arg.value.dtype)
        if arg.role == "out":
            return [np.zeros(self.out_elements, kind)]
        assert arg.access is not None
        pitch = max(arg.access.pitch, prod(arg.value.shape))
        frames = arg.access.taps + 1
        values = random.standard_normal(frames * pitch + self.rows * max(arg.access.row_pitch, pitch))
        x = values.astype(kind) if kind.startswith("float") else (values * 32).astype(kind)
        if arg.access.taps == 1 or arg.access.contiguous:
            return [x]
        item = np.dtype(kind).itemsize
        return [x, (np.arange(max(arg.access.taps, 16)) % frames * pitch * item // 4).astype(np.int32)]


class Session:
    """Where kernels run. rpc: "TRACKER:PORT,KEY", "HOST:PORT" of a server, or None for this process.

    boards: how many measurements may run at once. A board is asked for again for each kernel, so that others get their
    turn and one that is switched off is left out. ``alone`` is held while kernels are made.
    """

    def __init__(self, target: Target, rpc: str | None, cxx: str | None = None) -> None:
        logging.getLogger("RPCServer").setLevel(logging.WARNING)
        self.target, self.cxx, self.boards = target, cxx, 1
        self.alone = threading.Lock()
        self.where = "this machine" if rpc is None else f"rpc {rpc}"
        self._libraries, self._key = 0, ""
        self._place: tuple[str, int] | None = None
        if rpc is None:
            return
        self._address, _, self._key = rpc.partition(",")
        host, _, port = self._address.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f"--rpc takes TRACKER:PORT,KEY, or HOST:PORT of a server, not '{rpc}'.")
        self._place = host, int(port)
        try:
            socket.create_connection(self._place, CONNECT).close()  # TVM would try for a minute
            if self._key:
                self.boards = self._count(*self._place)
        except OSError as error:
            raise self._absent(error) from None

    def _absent(self, error: Exception) -> InputError:
        kind = "tracker" if self._key else "server"
        return InputError(f"there is no TVM RPC {kind} at {self._address}: {error}")

    def _count(self, host: str, port: int) -> int:
        """How many boards a tracker has under the key."""
        from tvm import rpc as remote

        try:
            found = [
                info["key"].partition(":")[2] for info in remote.connect_tracker(host, port).summary()["server_info"]
            ]
        except Exception as error:  # what TVM raises about a line that speaks something else
            raise self._absent(error) from None
        if self._key not in found:
            others = ", ".join(sorted(set(found))) or "none"
            raise InputError(
                f"the tracker at {self._address} has no board under the key '{self._key}' (it has: {others}); start "
                f"one with: python -m tvm.exec.rpc_server --tracker {self._address} --key {self._key}"
            )
        return found.count(self._key)

    def _open(self) -> Any:
        from tvm import rpc as remote

        if self._place is None:
            return remote.LocalSession()
        if self._key:
            return remote.connect_tracker(*self._place).request(self._key, session_timeout=TIMEOUT)
        return remote.connect(*self._place, session_timeout=TIMEOUT)

    def times(self, library: Path, cases: Sequence[Case]) -> list[float]:
        """Microseconds of a call of each kernel in a library that ``link`` made: the least of several turns.

        Raises InputError where no board answers.
        """
        for left in reversed(range(TRIES if self._place else 1)):
            try:
                return self._measured(library, cases)
            except Exception as error:  # TVM raises many types about a board that goes away
                if self._place is None:
                    raise
                if not left:
                    said = str(error).strip().splitlines()[-1][:200]
                    raise InputError(f"kernels cannot be measured on {self.where}: {said}") from None
        raise AssertionError

    def _measured(self, library: Path, cases: Sequence[Case]) -> list[float]:
        import tvm

        session = self._open()
        session.upload(str(library))
        loaded = session.load_module(library.name)
        device = session.cpu(0)
        random = np.random.default_rng(0)
        best = [float("inf")] * len(cases)
        given = [[tvm.runtime.tensor(a, device) for a in case.arrays(random)] for case in cases]
        for _ in range(ROUNDS):
            for i, arrays in enumerate(given):
                timer = loaded.time_evaluator(f"t{i}", device, number=1, repeat=1, min_repeat_ms=LEAST_MS)
                best[i] = min(best[i], timer(*arrays).mean * 1e6)
        with suppress(Exception):
            session.remove(library.name)
        return best

    def link(self, module: Any, cases: Sequence[Case], folder: Path) -> Path:
        """A shared library of the kernels and the functions that call them. Raises InputError."""
        from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path

        self._libraries += 1  # a system loads a library of the same name once
        code, out = folder / "kernels.o", folder / f"kernels{self._libraries}.so"
        code.write_bytes(object_bytes(module))
        text = ['extern "C" {', _HEAD]
        for i, case in enumerate(cases):
            count = len(case.arrays(np.random.default_rng(0)))
            text.append(f"int32_t {case.symbol}({', '.join(['void*'] * count)});")
            pointers = ", ".join(f"memory(a + {n})" for n in range(count))
            text.append(_CALL.format(name=f"t{i}", symbol=case.symbol, pointers=pointers))
        source = folder / "calls.cc"
        source.write_text("\n".join([*text, "}"]))
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", f"-I{find_include_path()}", f"-I{find_dlpack_include_path()}"]
        if not self.target.native:
            toolchain.compile_cxx(self.target, out, [source], [*flags, f"-Wl,{code}"], self.cxx)
            return out
        try:
            command = [*(shlex.split(self.cxx) if self.cxx else find_compiler()), *flags, str(source), str(code)]
        except NoCompiler as error:
            raise InputError(f"{error}.") from None
        done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"'{shlex.join(command[:1])}' does not link kernels: {done.stderr.strip()[-1000:]}")
        return out
