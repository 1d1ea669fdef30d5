"""Every target's file is whole; LLVM knows its names; what is wrong with a file is said in one sentence."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel import targets
from runnel.compiler.codegen import Target
from runnel.errors import InputError
from runnel.tools import cli
from runnel.tools.build import kernel_target

BOARD: dict[str, Any] = {
    "summary": "a board", "triple": "aarch64-linux-gnu", "glibc": "2.31", "cpu": "cortex-a72", "features": ["+neon"],
    "cores": 4, "ram_mib": 1024, "page_kib": 4, "storage_mb_s": 40,
}  # fmt: skip
TOML = "".join(f"{key} = {json.dumps(value)}\n" for key, value in BOARD.items())


@pytest.fixture(autouse=True)
def own_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of a user's own targets."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = targets.own_folder()
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", targets.names())
def test_every_target_loads_and_llvm_knows_its_names(name: str) -> None:
    board = targets.load(name)
    made = kernel_target(board)
    assert board.name == name
    assert board.native or made.arch == board.arch
    if not board.native:
        assert {f[1:] for f in board.features if f[0] == "+"} <= {f[1:] for f in board.features if made.has(f[1:])}
    assert made.fused or name == "x86-64-v2"


def test_the_boards_of_the_list_are_there() -> None:
    boards = ("rpi-zero-2w rpi3 rpi4 rpi5 jetson-nano jetson-xavier-nx jetson-orin-nano jetson-orin-agx rk3588 aarch64 "
              "armv7 host x86-64-v2 x86-64-v3 x86-64-v4")  # fmt: skip
    assert set(boards.split()) <= set(targets.names())
    assert targets.load("rpi5").page_kib == 16
    capability = {name: targets.load(f"jetson-{name}").accelerators[0].capability for name in ("nano", "orin-nano")}
    assert capability == {"nano": "5.3", "orin-nano": "8.7"}
    assert kernel_target(targets.load("rpi5")).has("dotprod") and not kernel_target(targets.load("rpi4")).has("dotprod")


@pytest.mark.parametrize("name", ["moon", "", "host/..", "../host", "none.toml"])
def test_an_unknown_target_lists_the_known(name: str) -> None:
    with pytest.raises(InputError, match="known are: .*host|cannot be read|is not right"):
        targets.load(name)


def test_a_file_of_ones_own(tmp_path: Path, own_targets: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(TOML)
    assert targets.load(str(path)).cpu == "cortex-a72" and targets.load(str(path)).name == "my"
    (own_targets / "shed.toml").write_text(TOML)
    assert "shed" in targets.names() and targets.load("shed").cores == 4
    (own_targets / "rpi5.toml").write_text(TOML)
    assert targets.load("rpi5").summary == "a board"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, "unknown key 'colour'; known are summary"),
        ({"core": 4}, "unknown key 'core'; did you mean 'cores'"),
        ({"cores": None}, "lacks the key 'cores'"),
        ({"cores": 0}, "'cores' is not right; it is a whole number from 1"),
        ({"cores": True}, "'cores' is not right"),
        ({"triple": "mips-linux-gnu"}, "triple = 'mips-linux-gnu' is not right"),
        ({"triple": "aarch64-linux-musl"}, "is not right"),
        ({"triple": "armv7l-linux-gnu"}, "is not right"),
        ({"glibc": "2.1.3"}, "glibc = '2.1.3'"),
        ({"glibc": 2.31}, "'glibc' is not right; it is a text"),
        ({"cpu": "x y"}, "LLVM's name"),
        ({"features": ["dotprod"]}, "with \\+ or - before"),
        ({"features": ["+crc", "-crc"]}, "crc twice"),
        ({"page_kib": 8}, "is 4, 16 or 64"),
        ({"storage_mb_s": float("nan")}, "'storage_mb_s' is not right"),
        ({"summary": "a\nb"}, "on one line"),
        ({"accelerators": [{"kind": "tpu", "name": "x"}]}, "'kind' is not right; it is one of cuda"),
        ({"accelerators": [{"kind": "cuda", "name": "x"}]}, "lacks the key 'capability'"),
        ({"accelerators": [{"kind": "cuda", "name": "x", "capability": "high"}]}, "'capability' is not right"),
        ({"accelerators": "many"}, "list of tables"),
    ],
)
def test_what_is_wrong_is_one_sentence(change: dict[str, Any], said: str) -> None:
    table = {key: value for key, value in (BOARD | change).items() if value is not None}
    with pytest.raises(InputError, match=said) as caught:
        targets.parse("board", table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["cores = ", "\x00", "a = [" * 5000, "x = 1\n" * 20000])
def test_what_is_no_toml_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="not a TOML file|larger than"):
        targets.load(str(path))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*BOARD, "accelerators", "memory_mb_s", "x"]), values)
def test_any_value_is_taken_or_refused(key: str, value: Any) -> None:
    with contextlib.suppress(InputError):
        assert targets.parse("board", BOARD | {key: value}).name == "board"


def test_names_unknown_to_llvm_are_errors_with_near_ones() -> None:
    with pytest.raises(InputError, match="no processor 'cortex-a77x' .*near are: cortex-a77"):
        Target.of("aarch64-linux-gnu", "cortex-a77x")
    with pytest.raises(InputError, match="no feature 'dotprd' .*near are: dotprod"):
        Target.of("aarch64-linux-gnu", "cortex-a76", ("+dotprd",))
    with pytest.raises(InputError, match="no processor 'cortex-a76' for x86_64"):
        Target.of("x86_64-linux-gnu", "cortex-a76")


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets"]) == 0
    assert "Raspberry Pi 5" in capsys.readouterr().out
    assert cli.main(["targets", "show", "rpi5"]) == 0
    assert "16.0 KiB" in capsys.readouterr().out
    assert cli.main(["targets", "show", "jetson-nano", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["arch"] == "aarch64" and shown["accelerators"][0]["capability"] == "5.3"
    assert cli.main(["targets", "show"]) == 2
    assert cli.main(["targets", "show", "rpi6"]) == 2
    assert "known are" in capsys.readouterr().err
