"""Answers: what the native half pulls, in the shape of OpenAI's objects."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from ._records import (
    ChatCompletion,
    ChatCompletionChunk,
    Plan,
    Record,
    TextCompletion,
    TextCompletionChunk,
)
from ._swarmllm import NativeGeneration

Whole = TypeVar("Whole", bound=Record)
Chunk = TypeVar("Chunk", bound=Record)
_Piece = tuple[str | None, str | None, str | None]
"""Text, or the end as JSON, and the tokens that it took as JSON."""


def _facts(end: dict[str, Any]) -> dict[str, Any]:
    prompt, completion = end["prompt_tokens"], end["completion_tokens"]
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    usage["prompt_tokens_details"] = {"cached_tokens": end["cached_tokens"]}
    return {"usage": usage, "route": end["route"], "timings": end["timings"]}


def _likely(token: dict[str, Any]) -> dict[str, Any]:
    return {"token": token["text"], "logprob": token["logprob"], "bytes": token["bytes"]}


def _logprobs(tokens: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """How likely these tokens were, as OpenAI tells it; nothing where it was not asked for."""
    if tokens is None:
        return None
    told = [{**_likely(token), "top_logprobs": [_likely(other) for other in token["alternatives"]]} for token in tokens]
    return {"content": told}


class _Shape(Generic[Whole, Chunk]):
    """Puts pieces into the shape that the result type has."""

    def __init__(self, native: NativeGeneration, model: str, whole: type[Whole], chunk: type[Chunk]) -> None:
        self.native = native
        self._chat = whole is ChatCompletion
        self._whole, self._chunk = whole, chunk
        self._first = True
        self._head = {"id": native.id, "created": int(time.time()), "model": model}

    def chunk(self, piece: _Piece) -> Chunk:
        text, ended, tokens = piece
        end = json.loads(ended) if ended is not None else None
        choice: dict[str, Any] = {"index": 0, "finish_reason": end["finish"] if end else None}
        choice["logprobs"] = _logprobs(json.loads(tokens)) if tokens is not None else None
        if self._chat:
            choice["delta"] = {"role": "assistant"} if self._first else {}
            choice["delta"]["content"] = text or ""
        else:
            choice["text"] = text or ""
        self._first = False
        facts = _facts(end) if end else {"usage": None, "route": None, "timings": None}
        name = "chat.completion.chunk" if self._chat else "text_completion"
        return self._chunk({**self._head, "object": name, "choices": [choice], **facts})

    def whole(self, ended: str) -> Whole:
        end = json.loads(ended)
        choice: dict[str, Any] = {"index": 0, "finish_reason": end["finish"], "logprobs": _logprobs(end["logprobs"])}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": end["text"]}
        else:
            choice["text"] = end["text"]
        name = "chat.completion" if self._chat else "text_completion"
        return self._whole({**self._head, "object": name, "choices": [choice], **_facts(end)})


class _Handle(Generic[Whole, Chunk]):
    _shape: _Shape[Whole, Chunk] | None

    def __init__(self, shape: _Shape[Whole, Chunk]) -> None:
        self._shape = shape
        self.route: Plan = Plan(json.loads(shape.native.route))

    def cancel(self) -> None:
        """Ends the answer early, from any thread; the next chunk is then the last."""
        shape = self._shape
        if shape is not None:
            shape.native.cancel()

    def _drop(self) -> None:
        self._shape = None


class Stream(_Handle[Whole, Chunk], Iterator[Chunk]):
    """An answer as it comes. Dropping or closing it (`with` closes) cancels what has not come yet."""

    def __next__(self) -> Chunk:
        shape = self._shape
        piece = shape.native.next() if shape is not None else None
        if shape is None or piece is None:
            raise StopIteration
        return shape.chunk(piece)

    def close(self) -> None:
        """Cancels what has not come yet."""
        self.cancel()
        self._drop()

    def __enter__(self) -> Stream[Whole, Chunk]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream(_Handle[Whole, Chunk], AsyncIterator[Chunk]):
    """The twin of `Stream` for asyncio."""

    async def __anext__(self) -> Chunk:
        shape = self._shape
        piece = await shape.native.next_async() if shape is not None else None
        if shape is None or piece is None:
            raise StopAsyncIteration
        return shape.chunk(piece)

    async def aclose(self) -> None:
        """Cancels what has not come yet."""
        self.cancel()
        self._drop()

    async def __aenter__(self) -> AsyncStream[Whole, Chunk]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def finish(shape: _Shape[Whole, Chunk]) -> Whole:
    """Waits for the whole answer."""
    while (piece := shape.native.next()) is not None:
        if piece[1] is not None:
            return shape.whole(piece[1])
    raise RuntimeError("the answer had no end")


async def finish_async(shape: _Shape[Whole, Chunk]) -> Whole:
    """Waits for the whole answer."""
    while (piece := await shape.native.next_async()) is not None:
        if piece[1] is not None:
            return shape.whole(piece[1])
    raise RuntimeError("the answer had no end")


def chat_shape(native: NativeGeneration, model: str) -> _Shape[ChatCompletion, ChatCompletionChunk]:
    """The shape of a chat's answer."""
    return _Shape(native, model, ChatCompletion, ChatCompletionChunk)


def text_shape(native: NativeGeneration, model: str) -> _Shape[TextCompletion, TextCompletionChunk]:
    """The shape of a continuation."""
    return _Shape(native, model, TextCompletion, TextCompletionChunk)


ChatStream = Stream[ChatCompletion, ChatCompletionChunk]
TextStream = Stream[TextCompletion, TextCompletionChunk]
AsyncChatStream = AsyncStream[ChatCompletion, ChatCompletionChunk]
AsyncTextStream = AsyncStream[TextCompletion, TextCompletionChunk]
