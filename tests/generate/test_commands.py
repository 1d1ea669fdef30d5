"""runnel generate and runnel chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shipped import VERSE

from runnel.tools.cli import main


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(a) for a in args])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_generate_gives_figures_as_data(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "generate", bundle, "And God said", "--kv", "sink=4,window=32", "--tokens", 200, "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert found["tokens"] == 200
    assert found["kv_bytes_start"] == found["kv_bytes_end"] > 0
    assert found["evictions"] > 0
    assert found["text"].startswith("And God said")
    assert found["ms_p50"] <= found["ms_p99"]
    assert {"tokens_per_s", "rss_bytes_start", "rss_bytes_end", "prompt_tokens", "prefill_ms"} <= found.keys()


def test_generate_writes_the_text_and_its_stats(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "generate", bundle, "In the beginning", "--tokens", 12, "--stats")
    assert code == 0
    assert out.startswith("In the beginning")
    assert "a second" in err
    assert "cache" in err


def test_a_saved_context_needs_no_prompt(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "And the LORD spake unto Moses,"
    whole = run(capsys, "generate", bundle, text, "--tokens", 20)[1]
    assert run(capsys, "generate", bundle, text, "--save-context", tmp_path / "c") == (0, "", "")
    assert text + run(capsys, "generate", bundle, "--context", tmp_path / "c", "--tokens", 20)[1] == whole


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["\udcff"], "not valid UTF-8"),
        (["a", "--kv", "sink=4"], "window"),
        (["a", "--kv", "sink=4,window=4000"], "window"),
        (["a", "--tokenizer", "/nonexistent"], "cannot be read"),
        (["a", "--context", "/nonexistent"], "cannot be read"),
        (["a", "--top-p", "7"], "top-p makes no sense"),
    ],
)
def test_bad_requests_get_one_sentence(
    bundle: Path, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "generate", bundle, *args, "--tokens", 2)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_prompt_longer_than_a_full_cache_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "full.rnl"
    assert main(["compile", str(VERSE / "verse.onnx"), "--kv", "full", "--max-frames", "32", "-o", str(path)]) == 0
    capsys.readouterr()
    code, _, err = run(capsys, "generate", path, "and it came to pass " * 20)
    assert code == 2
    assert "32" in err
    assert err.count("\n") == 1


def test_a_tokenizer_of_another_model_is_refused(bundle: Path, tmp_path: Path, capsys) -> None:
    larger = tmp_path / "larger.bin"
    larger.write_bytes(b"\1\0\0\0" + b"\0\0\0\0\1\0\0\0a" * 900)
    code, _, err = run(capsys, "generate", bundle, "a", "--tokenizer", larger)
    assert code == 2
    assert "has 900 tokens and the model 768" in err


def test_chat_speaks_json_lines(bundle: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        {"id": 1, "prompt": "And God", "tokens": 6}, {"prompt": 5}, {"prompt": "a", "more": 1},
        {"id": 2, "reset": True},
        {"id": 3, "prompt": "And God", "tokens": 6, "temperature": 0},
    ]  # fmt: skip
    lines = [json.dumps(r).encode() for r in requests] + [b"\xff", b"[", b"[]", b""]
    monkeypatch.setattr("sys.stdin", Input(b"\n".join(lines)))
    code, out, _ = run(capsys, "chat", bundle, "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    texts = {n: "".join(e.get("text", "") for e in events if e.get("id") == n) for n in (1, 3)}
    assert texts[1] == texts[3] != ""
    assert [e["tokens"] for e in events if e.get("done") and "tokens" in e] == [6, 6]
    errors = [e["error"] for e in events if "error" in e]
    assert [
        word in e for word, e in zip(("no prompt", "unknown key", "UTF-8", "not JSON", "not an object"), errors)
    ] == [True] * 5


def test_chat_survives_hostile_lines(bundle: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from runnel.tools.commands import chat

    monkeypatch.setattr(chat, "LONGEST_LINE", 3000)
    bad = [
        b'{"id": "\\ud800", "prompt": 5}', b'{"prompt": "\\ud800"}', b'{"prompt": "' + b"a" * 10000 + b'"}',
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": 1e999}', b"[" * 2000,
        b'{"prompt": "a", "last": 1' + b"0" * 40 + b"}", b'{"prompt": "a", "top_k": 1.5}',
        b'{"prompt": "a", "seed": -1}', b'{"prompt": "a", "stop": "b"}',
    ]  # fmt: skip
    good = json.dumps({"id": 1, "prompt": "And God", "tokens": 2}).encode()
    monkeypatch.setattr("sys.stdin", Input(b"\n".join([*bad, good])))
    code, out, _ = run(capsys, "chat", bundle, "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert ["error" in e for e in events[: len(bad)]] == [True] * len(bad)
    assert events[-1]["done"] and events[-1]["tokens"] == 2


def test_an_interrupt_ends_an_answer_and_not_the_conversation(bundle: Path, capsys, monkeypatch) -> None:
    from runnel.tools.generate.session import Session

    lines, calls, original = iter(["Who art thou", "Who art thou", "/quit"]), [0], Session.next

    def interrupted(session: Session) -> int:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return original(session)

    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr(Session, "next", interrupted)
    code, _, _ = run(capsys, "chat", bundle, "--tokens", 5)
    assert code == 0
    assert calls[0] == 3 + 5


class Input:
    """Standard input of bytes."""

    def __init__(self, data: bytes) -> None:
        import io

        self.buffer = io.BytesIO(data)


def test_chat_at_the_terminal_takes_turns_back(bundle: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["Who art thou", "/undo", "Who art thou", "/undo", "/undo", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    code, out, err = run(capsys, "chat", bundle, "--tokens", 8)
    answers = out.splitlines()
    assert code == 0
    assert answers[0] == answers[1] != ""
    assert "no turn to take back" in err
