"""The server of OpenAI's protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from shipped import VERSE
from starlette.testclient import TestClient

import runnel
from runnel.tools.generate.options import Decoder
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
        ("chat/completions", b'{"messages": []}', "messages"),
        ("chat/completions", b'{"messages": [{"role": "king", "content": "a"}]}', "role"),
    ],
)
def test_bad_requests_get_one_sentence(client: TestClient, path: str, body: bytes, said: str) -> None:
    response = client.post(f"/v1/{path}", content=body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]
