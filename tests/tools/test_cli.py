"""The command line: exit codes, one plain sentence, and what every command shares."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import runnel
from runnel.errors import InputError, InternalError, Reason, Refused
from runnel.tools.cli import COMMANDS, main


def refuse(error: BaseException) -> Any:
    def inspect(*_: object, **__: object) -> None:
        raise error

    return inspect


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_nothing_asked_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "compile" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [["fly"], ["run"], ["compile", "m.onnx", "--rate", "0"], ["inspect", "m.onnx", "--time-axis", "x"]]
)
def test_arguments_that_are_not_understood_get_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--help" in err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (InputError("that is\nnot a model."), 2, "runnel: that is not a model.\n"),
        (InternalError("the proof failed."), 1, "runnel: the proof failed.\n"),
        (ZeroDivisionError("division by zero"), 1, "runnel: a fault of runnel: ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, "runnel: interrupted"),
    ],
)
def test_errors_are_one_sentence(
    error: BaseException, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(vars(runnel), "inspect", refuse(error))
    assert main(["inspect", "m.onnx"]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.strip().count("\n") == 0
    assert "Traceback" not in captured.err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(vars(runnel), "inspect", refuse(InputError("no")))
    assert main(["inspect", "m.onnx", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_refusal_lists_every_op(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = [Reason("a", "Softmax", "runs over time", "do this"), Reason("b", "GRU", "bidirectional", "do that")]
    monkeypatch.setitem(vars(runnel), "inspect", refuse(Refused(reasons)))
    assert main(["inspect", "m.onnx", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "runnel: refused, 2 ops do not stream:",
        "  Softmax 'a': runs over time; do this",
        "  GRU 'b': bidirectional; do that",
    ]
    assert json.loads(captured.out)["refused"][1] == {
        "node": "b", "op": "GRU", "reason": "bidirectional", "remedy": "do that", "modes": [],
    }  # fmt: skip


def test_targets_and_doctor_print_what_a_program_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    assert "host" in [target["name"] for target in json.loads(capsys.readouterr().out)]
    assert main(["doctor", "--json"]) == 0
    found = {finding["name"]: finding["found"] for finding in json.loads(capsys.readouterr().out)}
    assert found["numpy"]
    assert main(["doctor"]) == 0


def test_python_dash_m_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "runnel", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"runnel {runnel.__version__}\n"


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"'{sys.executable}' -m runnel targets --json | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
