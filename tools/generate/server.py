"""OpenAI's protocol over a decoder: /v1/models, /v1/completions and /v1/chat/completions, whole or as events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from runnel.errors import InputError
from runnel.tools.generate.options import Decoder
from runnel.tools.generate.sampling import Sampling
from runnel.tools.generate.scheduler import FAULT, Busy, Job, Scheduler

MOST_BYTES = 1 << 24  # of a request
MOST_MESSAGES = 4096
NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
MOST_STOPS = 16
PATIENCE = 0.5  # seconds between looks at whether somebody still waits for an answer
# What would change an answer and is not done: a request that asks for it is refused.
NOT_DONE: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False, 0), "top_logprobs": (0,),
    "tools": ([],), "functions": ([],), "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
}  # fmt: skip
Piece = tuple[str, "str | None"]


class BadRequest(Exception):
    """What is wrong with a request, in one sentence."""


def application(decoder: Decoder, streams: int, most_tokens: int) -> Starlette:
    """The server's application. streams: texts at once. most_tokens: of one answer."""
    server = _Server(decoder, streams, most_tokens)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.scheduler.close)

    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
        ],
        lifespan=lifespan,
    )


class _Server:
    def __init__(self, decoder: Decoder, streams: int, most_tokens: int) -> None:
        self.decoder, self.most_tokens = decoder, most_tokens
        self.name = str(decoder.program.manifest["name"])
        self.scheduler = Scheduler(decoder, streams)

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "runnel"}]})

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, chat: bool) -> Response:
        try:
            body = await _body(request)
            _check_done(body)
            prompt = _transcript(body) if chat else _prompt(body)
            stops = _stops(body) + (["\nUser:"] if chat else [])
            tokens = min(_whole(body, "max_completion_tokens", _whole(body, "max_tokens", 256)), self.most_tokens)
            sampling = _sampling(body)
            queue: asyncio.Queue[Piece] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def emit(text: str, why: str | None) -> None:
                with contextlib.suppress(RuntimeError):  # the server has ended
                    loop.call_soon_threadsafe(queue.put_nowait, (text, why))

            # A long prompt takes the tokenizer a while, in which others are served.
            job = await asyncio.to_thread(self.scheduler.submit, prompt, tokens, sampling, stops, emit)
        except Busy as error:
            return _error(str(error), 503)
        except (BadRequest, InputError) as error:
            return _error(str(error), 400)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name,
            "object": "chat.completion" if chat else "text_completion",
        }  # fmt: skip
        if body.get("stream"):
            options = body.get("stream_options")
            usage = isinstance(options, dict) and bool(options.get("include_usage"))
            return StreamingResponse(_events(job, queue, head, chat, usage), media_type="text/event-stream")
        return await _whole_answer(request, job, queue, head, chat)


async def _whole_answer(
    request: Request, job: Job, queue: asyncio.Queue[Piece], head: dict[str, Any], chat: bool
) -> Response:
    pieces: list[str] = []
    why: str | None = None
    try:
        while why is None:
            try:
                text, why = await asyncio.wait_for(queue.get(), PATIENCE)
                pieces.append(text)
            except asyncio.TimeoutError:
                if await request.is_disconnected():
                    why = "stop"
    finally:
        job.cancelled = True  # also where nobody waits any more
    if why.startswith("error: "):
        return _error(why.removeprefix("error: "), 500 if why == FAULT else 400)
    text = "".join(pieces)
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return JSONResponse({**head, "choices": [{"index": 0, "finish_reason": why, **said}], "usage": _usage(job)})


def _usage(job: Job) -> dict[str, int]:
    taken, made = job.usage
    return {"prompt_tokens": taken, "completion_tokens": made, "total_tokens": taken + made}


async def _events(
    job: Job, queue: asyncio.Queue[Piece], head: dict[str, Any], chat: bool, usage: bool
) -> AsyncIterator[bytes]:
    head = {**head, "object": "chat.completion.chunk"} if chat else head
    try:
        if chat:
            delta = {"role": "assistant", "content": ""}
            yield _event({**head, "choices": [{"index": 0, "finish_reason": None, "delta": delta}]})
        while True:
            text, why = await queue.get()
            if why is not None and why.startswith("error: "):
                yield _event({"error": {"message": why.removeprefix("error: "), "type": "invalid_request_error"}})
                break
            said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
            if text or why is not None:
                yield _event({**head, "choices": [{"index": 0, "finish_reason": why, **said}]})
            if why is not None:
                break
        if usage:
            yield _event({**head, "choices": [], "usage": _usage(job)})
        yield b"data: [DONE]\n\n"
    finally:
        job.cancelled = True


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode("utf-8") + b"\n\n"


def _error(message: str, status: int) -> Response:
    text = " ".join(message.split())
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": text, "type": kind}}, status)


async def _body(request: Request) -> dict[str, Any]:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise BadRequest(f"the request is longer than {MOST_BYTES} bytes; send less.")
    try:
        body = json.loads(bytes(data).decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadRequest("the request is not JSON in UTF-8; send one object.") from None
    if not isinstance(body, dict):
        raise BadRequest("the request is not an object; send one.")
    return body


def _check_done(body: dict[str, Any]) -> None:
    """Refuses what would change the answer and is not done."""
    for key, plain in NOT_DONE.items():
        if body.get(key) is not None and body[key] not in plain:
            raise BadRequest(f"{key} is not done by this server; leave it out.")


def _prompt(body: dict[str, Any]) -> str | list[int]:
    """Text, its tokens, or a list of one text."""
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return _text({"prompt": value[0]}, "prompt")
    if isinstance(value, list) and value and all(isinstance(token, int) for token in value):
        return [int(token) for token in value]
    return _text(body, "prompt")


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if isinstance(value, list) and key == "content":
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in value]
        value = "".join(p for p in parts if isinstance(p, str)) if None not in parts else None
    if not isinstance(value, str):
        raise BadRequest(f"the request has no {key} that is text; give it as text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRequest(f"the {key} holds half of a surrogate pair; give whole characters.") from None
    return value


def _transcript(body: dict[str, Any]) -> str:
    """The messages as one text, for models that know no other form of a conversation."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_MESSAGES:
        raise BadRequest(f"the request has no messages; give a list of 1 to {MOST_MESSAGES}.")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in NAMES:
            raise BadRequest(f"a message has no role of {', '.join(NAMES)}; give one to each.")
        turns.append(f"{NAMES[message['role']]}: {_text(message, 'content')}\n")
    return "".join(turns) + "Assistant:"


def _stops(body: dict[str, Any]) -> list[str]:
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(word, str) for word in stops):
        raise BadRequest(f"stop is no text or list of up to {MOST_STOPS} texts; give that.")
    return stops


def _whole(body: dict[str, Any], key: str, default: int) -> int:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"{key} is no number of at least 1; give one.")
    return value


def _sampling(body: dict[str, Any]) -> Sampling:
    """OpenAI's names, and top_k, min_p and repetition_penalty as other servers name them."""

    def number(key: str, default: float) -> float:
        value = body.get(key)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise BadRequest(f"{key} is no number; give one.")
        return value

    for key in ("seed", "top_k"):
        if body.get(key) is not None and (not isinstance(body[key], int) or isinstance(body[key], bool)):
            raise BadRequest(f"{key} is no whole number; give one.")
    seed = body.get("seed")
    return Sampling(
        temperature=number("temperature", 1.0), top_k=body.get("top_k") or 0, top_p=number("top_p", 1.0),
        min_p=number("min_p", 0.0), repetition=number("repetition_penalty", 1.0), seed=seed,
    )  # fmt: skip
