"""Answers: pieces of the native module as objects in OpenAI's format."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
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
from ._swarmllm import Error, NativeGeneration

Whole = TypeVar("Whole", bound=Record)
Chunk = TypeVar("Chunk", bound=Record)
_Piece = tuple[str | None, str | None, str | None]
"""Text, or the completion as JSON, and the log-probabilities of its tokens as JSON."""
ChoiceOptions = dict[str, Any]
"""The options of one choice."""


def _likely(token: dict[str, Any]) -> dict[str, Any]:
    return {"token": token["text"], "logprob": token["logprob"], "bytes": token["bytes"]}


def _logprobs(tokens: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """Log-probabilities of tokens in OpenAI's format; `None` if they were not requested."""
    if tokens is None:
        return None
    content = [{**_likely(token), "top_logprobs": [_likely(other) for other in token["alternatives"]]} for token in tokens]
    return {"content": content}


class _Shape(Generic[Whole, Chunk]):
    """Builds result objects from pieces. Choices are computed one after another, as on the server: from the second on, the
    prompt's KV cache is reused."""

    def __init__(self, model: str, whole: type[Whole], chunk: type[Chunk]) -> None:
        self._chat = whole is ChatCompletion
        self._whole, self._chunk = whole, chunk
        self._first = True
        self._head = {"id": "", "created": int(time.time()), "model": model}
        self._usage: dict[str, Any] | None = None
        self._began = time.monotonic()

    def due(self, options: ChoiceOptions) -> ChoiceOptions:
        """The options of a choice that starts now. A deadline covers all choices together."""
        deadline = options["deadline"]
        if deadline is None or not self._head["id"]:
            return options
        return {**options, "deadline": max(deadline - (time.monotonic() - self._began), 0.0)}

    def begin(self, native: NativeGeneration) -> None:
        """Starts a choice; the id of the answer is that of the first."""
        self._head["id"] = self._head["id"] or native.id
        self._first = True

    def _facts(self, end: dict[str, Any]) -> dict[str, Any]:
        """Route and timings of a choice that has ended, and the usage so far, in which the prompt counts once."""
        if self._usage is None:
            details = {"cached_tokens": end["cached_tokens"]}
            self._usage = {"prompt_tokens": end["prompt_tokens"], "prompt_tokens_details": details}
        completion = self._usage.get("completion_tokens", 0) + end["completion_tokens"]
        self._usage["completion_tokens"] = completion
        self._usage["total_tokens"] = self._usage["prompt_tokens"] + completion
        return {"usage": dict(self._usage), "route": end["route"], "timings": end["timings"]}

    def chunk(self, index: int, piece: _Piece) -> Chunk:
        text, ended, tokens = piece
        end = json.loads(ended) if ended is not None else None
        choice: dict[str, Any] = {"index": index, "finish_reason": end["finish"] if end else None}
        choice["logprobs"] = _logprobs(json.loads(tokens)) if tokens is not None else None
        if self._chat:
            choice["delta"] = {"role": "assistant"} if self._first else {}
            choice["delta"]["content"] = text or ""
        else:
            choice["text"] = text or ""
        self._first = False
        facts = self._facts(end) if end else {"usage": None, "route": None, "timings": None}
        name = "chat.completion.chunk" if self._chat else "text_completion"
        return self._chunk({**self._head, "object": name, "choices": [choice], **facts})

    def _choice(self, index: int, end: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": end["finish"], "logprobs": _logprobs(end["logprobs"])}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": end["text"]}
        else:
            choice["text"] = end["text"]
        return choice

    def whole(self, ended: list[str]) -> Whole:
        """The whole answer, from the completions of its choices."""
        ends = [json.loads(end) for end in ended]
        choices = [self._choice(index, end) for index, end in enumerate(ends)]
        # Each call adds to the usage; the last result has the sum.
        facts = [self._facts(end) for end in ends][-1]
        name = "chat.completion" if self._chat else "text_completion"
        return self._whole({**self._head, "object": name, "choices": choices, **facts})


class _Handle(Generic[Whole, Chunk]):
    _native: NativeGeneration | None

    def __init__(self, shape: _Shape[Whole, Chunk], choices: list[ChoiceOptions], native: NativeGeneration) -> None:
        self._shape, self._choices, self._native = shape, choices, native
        self._index = 0
        self._cancelled = False
        shape.begin(native)
        self.route: Plan = Plan(json.loads(native.route))

    def cancel(self) -> None:
        """Ends the answer early, from any thread. Text that is on its way may still come before the last chunk."""
        self._cancelled = True
        native = self._native
        if native is not None:
            native.cancel()

    def _next_choice(self) -> ChoiceOptions | None:
        """The options of the next choice; `None` after the last choice, a cancel or an error."""
        self._native = None
        self._index += 1
        return self._choices[self._index] if self._index < len(self._choices) and not self._cancelled else None

    def _started(self, native: NativeGeneration) -> None:
        self._native = native
        self._shape.begin(native)
        if self._cancelled:
            native.cancel()


class Stream(_Handle[Whole, Chunk], Iterator[Chunk]):
    """A stream of chunks. Dropping or closing it (also by `with`) cancels the rest of the answer."""

    def __init__(
        self,
        shape: _Shape[Whole, Chunk],
        choices: list[ChoiceOptions],
        ask: Callable[[ChoiceOptions], NativeGeneration],
    ) -> None:
        self._ask = ask
        super().__init__(shape, choices, ask(choices[0]))

    def __next__(self) -> Chunk:
        while (native := self._native) is not None:
            try:
                piece = native.next()
            except Error:
                self._cancelled = True
                raise
            if piece is not None:
                return self._shape.chunk(self._index, piece)
            upcoming = self._next_choice()
            if upcoming is not None:
                self._started(self._ask(self._shape.due(upcoming)))
        raise StopIteration

    def close(self) -> None:
        """Cancels the rest of the answer."""
        self.cancel()
        self._native = None

    def __enter__(self) -> Stream[Whole, Chunk]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream(_Handle[Whole, Chunk], AsyncIterator[Chunk]):
    """`Stream` for asyncio."""

    def __init__(
        self,
        shape: _Shape[Whole, Chunk],
        choices: list[ChoiceOptions],
        native: NativeGeneration,
        ask: Callable[[ChoiceOptions], Awaitable[NativeGeneration]],
    ) -> None:
        self._ask = ask
        super().__init__(shape, choices, native)

    async def __anext__(self) -> Chunk:
        while (native := self._native) is not None:
            try:
                piece = await native.next_async()
            except Error:
                self._cancelled = True
                raise
            if piece is not None:
                return self._shape.chunk(self._index, piece)
            upcoming = self._next_choice()
            if upcoming is not None:
                self._started(await self._ask(self._shape.due(upcoming)))
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancels the rest of the answer."""
        self.cancel()
        self._native = None

    async def __aenter__(self) -> AsyncStream[Whole, Chunk]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _ended(piece: _Piece | None) -> str | None:
    """The completion as JSON if the piece is the end."""
    if piece is None:
        raise RuntimeError("the answer ended without a completion")
    return piece[1]


def finish(
    shape: _Shape[Whole, Chunk], choices: list[ChoiceOptions], ask: Callable[[ChoiceOptions], NativeGeneration]
) -> Whole:
    """Waits for the whole answer."""
    ends = []
    for options in choices:
        native = ask(shape.due(options))
        shape.begin(native)
        while (end := _ended(native.next())) is None:
            pass
        ends.append(end)
    return shape.whole(ends)


async def finish_async(
    shape: _Shape[Whole, Chunk], choices: list[ChoiceOptions], ask: Callable[[ChoiceOptions], Awaitable[NativeGeneration]]
) -> Whole:
    """Waits for the whole answer."""
    ends = []
    for options in choices:
        native = await ask(shape.due(options))
        shape.begin(native)
        while (end := _ended(await native.next_async())) is None:
            pass
        ends.append(end)
    return shape.whole(ends)


def chat_shape(model: str) -> _Shape[ChatCompletion, ChatCompletionChunk]:
    """Builder of chat answers."""
    return _Shape(model, ChatCompletion, ChatCompletionChunk)


def text_shape(model: str) -> _Shape[TextCompletion, TextCompletionChunk]:
    """Builder of text completions."""
    return _Shape(model, TextCompletion, TextCompletionChunk)


ChatStream = Stream[ChatCompletion, ChatCompletionChunk]
TextStream = Stream[TextCompletion, TextCompletionChunk]
AsyncChatStream = AsyncStream[ChatCompletion, ChatCompletionChunk]
AsyncTextStream = AsyncStream[TextCompletion, TextCompletionChunk]
