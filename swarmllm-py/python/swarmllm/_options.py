"""Options of answers: their public types, and how they reach the native module. `None` is "not given"."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

from ._answers import ChoiceOptions
from ._swarmllm import InvalidArgumentError

Part = str | tuple[int, int] | tuple[int, int, bool]
"""A part of a model: `"all"`, `"coordinator"`, `(start, end)`, or `(start, end, head)`: the layers `start..end`, `end`
excluded, and whether the head too."""

Messages = str | Iterable[Mapping[str, str]]
"""Messages of a chat (`role`, `content`); a plain text is one message of the user."""

Pooling = Literal["mean", "last"]
"""How the hidden states of a text's tokens become one vector: their mean, or the state of the last token."""


def to_json(value: object) -> str:
    """The JSON text of an argument. The native module checks its content."""
    return json.dumps(value, default=_as_json)


def _as_json(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{value!r} has no JSON form")


def messages_json(messages: Messages) -> str:
    """The messages as a JSON list."""
    return to_json([{"role": "user", "content": messages}] if isinstance(messages, str) else messages)


def text_list(texts: str | Sequence[str]) -> list[str]:
    """The texts as a list; a single text is a list of one."""
    return [texts] if isinstance(texts, str) else list(texts)


class JsonSchema(TypedDict):
    """The answer is JSON that conforms to the schema. Keywords that cannot be enforced are errors that name them. Objects have
    no keys beside those that the schema names, unless it has `additionalProperties`."""

    json_schema: Mapping[str, Any]


class Lark(TypedDict):
    """The answer is derived from the rule `start` of a grammar, in llguidance's dialect of Lark."""

    lark: str


class Regex(TypedDict):
    """The whole answer matches a regular expression."""

    regex: str


Constraint = Literal["json_object"] | JsonSchema | Lark | Regex
"""The form of an answer."""


class Options(TypedDict, total=False):
    """Options of an answer."""

    max_tokens: int | None
    """Maximum number of tokens of the answer; the rest of the context if that is less. Default: 1024."""
    temperature: float | None
    """0 is greedy."""
    top_k: int | None
    typical_p: float | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    """Added to the logits of these tokens, -100 to 100; -100 bans a token."""
    seed: int | None
    stop: str | Sequence[str] | None
    """Texts that end the answer."""
    deadline: float | None
    """Time limit of the whole answer, in seconds."""
    exact: bool | None
    """The answer is that of a plain run of the whole model, token for token, whatever other sessions run. Default: false."""
    speculate: bool | None
    """Whether to compute draft tokens ahead where that pays; has no effect with `exact`. Default: true."""
    draft: str | None
    """A smaller model with the same vocabulary, held here as a whole, that proposes draft tokens. Default: they are taken from
    repeated text."""
    standby: bool | None
    """Whether hot standbys replicate the stages, where hosts can, to take over from a lost host. Default: false."""
    wire: Literal["f32", "bf16", "int8"] | None
    """Format of hidden states on the wire; `bf16` and `int8` are rounded and shorter, not with `exact`. Default: f32."""
    logprobs: int | None
    """Return the log-probability of each token whose text is in the answer, and of this number of alternatives, 0 to 20.
    Under a constraint, probabilities are those among the tokens that it admits. Default: none."""
    constraint: Constraint | None
    """The form of the answer, such as `{"json_schema": {...}}`."""
    caller: str | None
    """The name on whose behalf this is asked; waiting callers take turns. Default: all requests have the same."""
    n: int | None
    """Number of answers, 1 to 8, computed one after another; if `seed` is given, each has its own. Usage counts the prompt
    once; route and timings are those of the last answer. Default: 1."""


class ChatOptions(Options, total=False):
    """Options of an answer to a chat: those of any answer, and the inputs of the chat template."""

    tools: Sequence[Mapping[str, Any]] | None
    """Tools that the model may call, in OpenAI's format. A tool call is part of the answer's text."""
    documents: Sequence[Mapping[str, Any]] | None
    """Documents for the answer, for templates that support them."""
    enable_thinking: bool | None
    """Whether the model thinks before it answers, for templates that support it: one of `chat_template_kwargs`."""
    chat_template_kwargs: Mapping[str, Any] | None
    """Further variables of the template, by name."""
    chat_template: str | None
    """A template (Jinja) that replaces the model's own."""
    parse_content: bool | None
    """Whether control tokens are parsed in messages and inputs. A text can then forge turns. Default: they are plain text."""


_OPTIONS = tuple(Options.__annotations__)
_TEMPLATE_OPTIONS = tuple(name for name in ChatOptions.__annotations__ if name not in _OPTIONS)

_MAX_CHOICES = 8
_SEEDS = 1 << 64


def list_choices(options: Options) -> list[ChoiceOptions]:
    """The options of each choice."""
    given = _given(options)
    n = given.pop("n")
    if n is None:
        n = 1
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n must be a whole number, not {n!r}")
    if not 1 <= n <= _MAX_CHOICES:
        raise InvalidArgumentError(f"n must be 1 to {_MAX_CHOICES}, not {n}")
    seed = given["seed"]
    if n == 1 or seed is None:
        return [given] * n
    # The first keeps the seed unchanged, so that the native module refuses an invalid one.
    return [given, *({**given, "seed": (seed + index) % _SEEDS} for index in range(1, n))]


def split_options(options: ChatOptions) -> tuple[Options, dict[str, Any]]:
    """Splits options into those of any answer and the inputs of the template, as JSON."""
    rest: dict[str, Any] = {name: value for name, value in options.items() if name not in _TEMPLATE_OPTIONS}
    odd = [name for name in rest if name not in _OPTIONS]
    if odd:
        raise TypeError(f"there is no option {odd[0]!r}; options are {', '.join(_OPTIONS + _TEMPLATE_OPTIONS)}")
    variables = options.get("chat_template_kwargs")
    thinking = options.get("enable_thinking")
    if thinking is not None and (variables is None or isinstance(variables, Mapping)):
        if variables and "enable_thinking" in variables:
            raise TypeError("enable_thinking is given twice")
        variables = {**(variables or {}), "enable_thinking": thinking}
    tools, documents = options.get("tools"), options.get("documents")
    given = {
        "tools": None if tools is None else to_json(tools),
        "documents": None if documents is None else to_json(documents),
        "kwargs": None if variables is None else to_json(variables),
        "chat_template": options.get("chat_template"),
        "parse_content": options.get("parse_content"),
    }
    return cast("Options", rest), given


def _given(options: Options) -> dict[str, Any]:
    odd = [name for name in options if name not in _OPTIONS]
    if odd:
        raise TypeError(f"there is no option {odd[0]!r}; options are {', '.join(_OPTIONS)}")
    given: dict[str, Any] = {name: options.get(name) for name in _OPTIONS}
    stop = given["stop"]
    if isinstance(stop, Iterable):
        given["stop"] = [stop] if isinstance(stop, str) else list(stop)
    if given["constraint"] is not None:
        given["constraint"] = to_json(given["constraint"])
    if isinstance(given["logit_bias"], Mapping):
        given["logit_bias"] = dict(given["logit_bias"])
    return given
