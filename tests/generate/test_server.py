"""The server of OpenAI's protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from shipped import VERSE
from starlette.testclient import TestClient

import runnel
from runnel.tools.generate.options import Decoder
from runnel.tools.generate.sampling import Sampling
from runnel.tools.generate.scheduler import Busy, Scheduler
from runnel.tools.generate.server import application
from runnel.tools.generate.tokens import open_tokenizer


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[TestClient]:
    decoder = Decoder(runnel.load(bundle), open_tokenizer(VERSE / "tokenizer.json"), "sink=4,window=60")
    with TestClient(application(decoder, streams=2, most_tokens=50)) as made:
        yield made


def test_models_are_listed(client: TestClient) -> None:
    assert client.get("/v1/models").json()["data"][0]["id"] == "verse"
    assert client.get("/health").json() == {"status": "ok"}


def test_a_completion_whole_and_as_events_is_the_same_text(client: TestClient) -> None:
    request = {"prompt": "And God said", "max_tokens": 16, "temperature": 0.7, "seed": 4}
    whole = client.post("/v1/completions", json=request).json()
    with client.stream("POST", "/v1/completions", json=request | {"stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert "".join(e["choices"][0]["text"] for e in events) == whole["choices"][0]["text"] != ""
    assert whole["choices"][0]["finish_reason"] == events[-1]["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 16


def test_a_conversation_gets_a_message(client: TestClient) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who art thou?"}]
    answer = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 9, "temperature": 0}).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] <= 9


def test_the_most_tokens_hold(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={"prompt": "And", "max_tokens": 9999, "temperature": 0}).json()
    assert answer["usage"]["completion_tokens"] == 50


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("completions", b"{", "not JSON"),
        ("completions", b"[]", "not an object"),
        ("completions", b"{}", "no prompt"),
        ("completions", b'{"prompt": "\\ud800"}', "surrogate"),
        ("completions", b'{"prompt": "a", "max_tokens": 0}', "max_tokens"),
        ("completions", b'{"prompt": "a", "temperature": "hot"}', "temperature"),
        ("completions", b'{"prompt": "a", "top_p": 3}', "top-p"),
        ("completions", b'{"prompt": "a", "stop": 5}', "stop"),
        ("completions", b'{"prompt": ["a", "b"]}', "no prompt"),
        ("completions", b'{"prompt": [1, 99999]}', "unknown"),
        ("completions", b'{"prompt": "a", "top_k": Infinity}', "top_k"),
        ("completions", b'{"prompt": "a", "temperature": NaN}', "temperature"),
        ("completions", b'{"prompt": "a", "n": 3}', "n is not done"),
        ("completions", b'{"prompt": "a", "frequency_penalty": 0.5}', "frequency_penalty is not done"),
        ("chat/completions", b'{"messages": [{"role": ["user"], "content": "a"}]}', "role"),
        ("chat/completions", b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "content"),
        ("chat/completions", b'{"messages": []}', "messages"),
        ("chat/completions", b'{"messages": [{"role": "king", "content": "a"}]}', "role"),
    ],
)
def test_bad_requests_get_one_sentence(client: TestClient, path: str, body: bytes, said: str) -> None:
    response = client.post(f"/v1/{path}", content=body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


def events_of(client: TestClient, path: str, request: dict) -> list[dict]:
    with client.stream("POST", f"/v1/{path}", json=request | {"stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_events_are_as_clients_expect_them(client: TestClient) -> None:
    """A role first, then pieces, why it ended, and counts where they are asked for; parts of text are text."""
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "art thou?"}]
    request = {"messages": [{"role": "user", "content": parts}], "max_tokens": 5, "temperature": 0}
    events = events_of(client, "chat/completions", request | {"stream_options": {"include_usage": True}})
    assert {e["object"] for e in events} == {"chat.completion.chunk"} and len({e["id"] for e in events}) == 1
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-2]["choices"][0]["finish_reason"] in ("length", "stop")
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] <= 5
    plain = request | {"messages": [{"role": "user", "content": "Who art thou?"}]}
    whole = client.post("/v1/chat/completions", json=plain).json()["choices"][0]["message"]["content"]
    assert "".join(e["choices"][0]["delta"]["content"] for e in events[:-1]) == whole


def test_a_prompt_of_tokens_and_stop_texts(client: TestClient) -> None:
    tokens = open_tokenizer(VERSE / "tokenizer.json").encode("And God said")
    asked = {"max_tokens": 24, "temperature": 0}
    text = client.post("/v1/completions", json={"prompt": "And God said", **asked}).json()["choices"][0]["text"]
    assert client.post("/v1/completions", json={"prompt": tokens, **asked}).json()["choices"][0]["text"] == text
    word = text[len(text) // 2 : len(text) // 2 + 4]
    for stop in (word, [word, "unheard"]):
        cut = client.post("/v1/completions", json={"prompt": "And God said", "stop": stop, **asked}).json()["choices"][
            0
        ]
        assert (cut["text"], cut["finish_reason"]) == (text[: text.index(word)], "stop")


def test_many_at_once_get_what_each_gets_alone(client: TestClient) -> None:
    requests = [{"prompt": f"And {n}", "max_tokens": 12, "temperature": 0.9, "seed": n} for n in range(6)]

    def text(request: dict) -> str:
        return client.post("/v1/completions", json=request).json()["choices"][0]["text"]

    alone = [text(request) for request in requests]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(text, requests)) == alone


def test_more_than_may_wait_are_sent_away(bundle: Path) -> None:
    """Those that wait have no cache of their own yet, and those who left are not answered."""
    scheduler = Scheduler(Decoder(runnel.load(bundle), open_tokenizer(VERSE / "tokenizer.json"), None), 1, waiting=2)
    scheduler.close()  # its thread ends: the turns are ours
    scheduler._closed = False
    jobs = [scheduler.submit("And", 4, Sampling(), [], lambda text, why: None) for _ in range(2)]
    assert all(job.session is None for job in jobs)
    with pytest.raises(Busy, match="2 texts wait"):
        scheduler.submit("And", 4, Sampling(), [], lambda text, why: None)
    jobs[0].cancelled = True
    scheduler._jobs = jobs
    for _ in range(3):
        scheduler._turn()
    assert jobs[0].session is None and jobs[1].usage[1] > 0


def test_a_fault_with_one_text_is_nothing_to_others(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "session", lambda self, sampling: 1 / 0)
    response = client.post("/v1/completions", json={"prompt": "And", "max_tokens": 2})
    assert response.status_code == 500 and "fault" in response.json()["error"]["message"]
    monkeypatch.undo()
    assert client.post("/v1/completions", json={"prompt": "And", "max_tokens": 2}).status_code == 200
