"""Records: JSON objects whose keys are also attributes. Fields of a newer core are kept."""

from __future__ import annotations

import functools
import typing
from typing import Any, TypeVar

__all__ = [
    "Record",
    "Layers",
    "Flow",
    "Traffic",
    "Status",
    "Finding",
    "ImportReport",
    "Model",
    "Holding",
    "Balance",
    "Peer",
    "PlanStage",
    "Plan",
    "Embeddings",
    "RouteStage",
    "Timings",
    "Usage",
    "Message",
    "TopLogprob",
    "TokenLogprob",
    "Logprobs",
    "ChatChoice",
    "ChatChunkChoice",
    "TextChoice",
    "ChatCompletion",
    "TextCompletion",
    "ChatCompletionChunk",
    "TextCompletionChunk",
]

_T = TypeVar("_T", bound="Record")


class Record(dict[str, Any]):
    """A dict whose keys are also attributes. Values are converted to the record types of the class's annotations."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        for name, build in _builders(type(self)).items():
            if self.get(name) is not None:
                self[name] = build(self[name])

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}") from None

    @classmethod
    def listed(cls: type[_T], values: list[dict[str, Any]]) -> list[_T]:
        """A list of records."""
        return [cls(value) for value in values]


@functools.cache
def _builders(cls: type[Record]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {name: build for name, hint in hints.items() if (build := _builder(hint)) is not None}


def _builder(hint: Any) -> Any:
    """The constructor of records for a type: a record, a list of records, or an optional one."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return arguments[0].listed if issubclass(arguments[0], Record) else None
    if arguments:
        return next((build for argument in arguments if (build := _builder(argument)) is not None), None)
    return hint if isinstance(hint, type) and issubclass(hint, Record) else None


class Layers(Record):
    """Layers `start..end`, `end` excluded."""

    start: int
    end: int


class Flow(Record):
    """Bytes that a node has sent and received."""

    sent: int
    received: int


class Traffic(Record):
    """Bytes on the network since the start, by kind."""

    control: Flow
    stage: Flow
    shard: Flow
    other: Flow


class Status(Record):
    """The state of a node."""

    id: str
    network: str
    private: bool
    data_dir: str
    addresses: list[str]
    engines: list[str]
    threads: int
    accelerators: list[str]
    memory_budget: int
    memory_used: int
    peers_connected: int
    waiting: int
    sessions: int
    stages: int
    traffic: Traffic
    uptime_ms: int


class Finding(Record):
    """A part of a model that cannot be used here, or not as its file specifies."""

    subject: str
    engine: str | None
    kind: str
    reason: str
    refuses: bool


class ImportReport(Record):
    """What of a model cannot run on a node. If `refuses`, an import needs `anyway`."""

    architecture: str
    refuses: bool
    findings: list[Finding]


class Model(Record):
    """A model that a node knows."""

    id: str
    name: str
    names: list[str]
    aliases: list[str]
    architecture: str
    layers: int
    context: int
    served_context: int
    size: int
    held: list[Layers]
    has_metadata: bool
    has_embedding: bool
    has_head: bool
    covered: list[Layers]
    ready: bool
    warnings: list[str]
    findings: list[Finding]


class Holding(Record):
    """The shards of a model at a peer."""

    model: str
    name: str
    layers: list[Layers]
    head: bool


class Peer(Record):
    """A peer that a node knows."""

    id: str
    connected: bool
    addresses: list[str]
    transport: str | None
    rtt_ms: float | None
    agent: str | None
    serves: bool
    free_memory: int
    holdings: list[Holding]
    clock_ahead_s: int | None


class Balance(Record):
    """The balance between a node and a peer, in credits."""

    peer: str
    earned: int
    spent: int
    unsigned_earned: int
    unsigned_spent: int


class PlanStage(Record):
    """A stage that would answer."""

    node: str
    layers: Layers
    head: bool


class Plan(Record):
    """The stages that would answer."""

    model: str
    stages: list[PlanStage]
    token_us: int


class Embeddings(Record):
    """Embeddings of texts, in their order."""

    model: str
    vectors: list[list[float]]
    prompt_tokens: int


class RouteStage(Record):
    """A stage that computed the answer, with its timings."""

    node: str
    standby: str | None
    epoch: int
    layers: Layers
    head: bool
    engine: str
    load_ms: int
    prefill_us: int
    decode_us: int


class Timings(Record):
    """Timings of an answer."""

    open_ms: float
    first_token_ms: float
    decode_tokens_per_second: float
    predicted_token_ms: float
    total_ms: float


class PromptTokensDetails(Record):
    """Details of the prompt's tokens."""

    cached_tokens: int


class Usage(Record):
    """Tokens used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Message(Record):
    """A message of a chat, or a piece of one."""

    role: str
    content: str


class TopLogprob(Record):
    """The log-probability of a token by the model; under a constraint, among the tokens that it admits."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A sampled token, and the most likely tokens at its position."""

    top_logprobs: list[TopLogprob]


class Logprobs(Record):
    """Log-probabilities of the tokens whose text is in the answer, or in a piece of it."""

    content: list[TokenLogprob]


class ChatChoice(Record):
    """A whole answer."""

    index: int
    message: Message
    logprobs: Logprobs | None
    finish_reason: str


class ChatChunkChoice(Record):
    """A piece of an answer."""

    index: int
    delta: Message
    logprobs: Logprobs | None
    finish_reason: str | None


class TextChoice(Record):
    """A continuation, or a piece of one."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: str | None


class _Answer(Record):
    id: str
    object: str
    created: int
    model: str
    usage: Usage
    route: list[RouteStage]
    timings: Timings


class ChatCompletion(_Answer):
    """An answer to a chat in OpenAI's format, with route and timings."""

    choices: list[ChatChoice]


class TextCompletion(_Answer):
    """A continuation of a text in OpenAI's format, with route and timings."""

    choices: list[TextChoice]


class _Chunk(Record):
    id: str
    object: str
    created: int
    model: str
    usage: Usage | None
    route: list[RouteStage] | None
    timings: Timings | None


class ChatCompletionChunk(_Chunk):
    """A piece of an answer. The last piece of each choice has `finish_reason`, route, timings, and the usage so far."""

    choices: list[ChatChunkChoice]


class TextCompletionChunk(_Chunk):
    """A piece of a continuation. The last piece of each choice has `finish_reason`, route, timings, and the usage so far."""

    choices: list[TextChoice]
