"""Nodes: what a program starts, asks and stops. `None` is "not given": the library's own default."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, overload

from ._answers import (
    Asked,
    AsyncChatStream,
    AsyncStream,
    AsyncTextStream,
    ChatStream,
    Stream,
    TextStream,
    chat_shape,
    finish,
    finish_async,
    text_shape,
)
from ._records import Balance, ChatCompletion, Embeddings, ImportReport, Model, Peer, Plan, Status, TextCompletion
from ._swarmllm import ClosedError, InvalidArgumentError, NativeGeneration, NativeNode

if TYPE_CHECKING:
    from typing_extensions import Unpack

Part = str | tuple[int, int] | tuple[int, int, bool]
"""`"all"`, `"coordinator"`, or `(start, end, head)`: these layers of the model, `end` excluded, and the head or not (left out:
not)."""

Messages = str | Iterable[Mapping[str, str]]
"""Messages of a chat (`role`, `content`); a plain text is one message of the user."""

Pooling = Literal["mean", "last"]
"""What is taken of the states of a text's tokens: their mean, or the last token's."""

DEADLINE = 5.0
"""Seconds that leaving a `with` block gives a node to drain."""


def _json(value: object) -> str:
    """JSON of what a caller gave; the native half says what of it does not fit."""
    return json.dumps(value, default=_as_json)


def _as_json(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{value!r} cannot be written as JSON")


def _messages(messages: Messages) -> str:
    return _json([{"role": "user", "content": messages}] if isinstance(messages, str) else messages)


def _texts(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


class JsonSchema(TypedDict):
    """The answer is JSON that the schema validates; keywords that cannot be enforced are refused by name. Objects whose keys
    it names have no others, unless it says `additionalProperties`."""

    json_schema: Mapping[str, Any]


class Lark(TypedDict):
    """The answer is what the rule `start` of a grammar derives, in llguidance's dialect of Lark."""

    lark: str


class Regex(TypedDict):
    """The answer is what a regular expression matches as a whole."""

    regex: str


Constraint = Literal["json_object"] | JsonSchema | Lark | Regex
"""The form that an answer must have."""


class Options(TypedDict, total=False):
    """Options of an answer."""

    max_tokens: int | None
    """What is left of the context where that is less. Default: 1024."""
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
    """Whole time allowed, in seconds."""
    exact: bool | None
    """Answer token for token as a plain run of the whole model, whoever else is answered meanwhile."""
    guess: bool | None
    """Whether to try guesses ahead where that pays; never where `exact` is asked for. Default: true."""
    draft: str | None
    """A smaller model with the same tokens, held here as a whole, which guesses in the place of repeated text."""
    stand_by: bool | None
    """Whether other hosts follow the stages, where some can, so that one goes on where a stage's host is lost."""
    wire: Literal["f32", "bf16", "int8"] | None
    """How hidden states travel: as they are, or rounded and shorter, not with `exact`. Default: f32."""
    logprobs: int | None
    """Tell how likely each token was whose text is in the answer, and so many of the likeliest there, 0 to 20. Under a
    constraint they are probabilities among the tokens that it admits."""
    constraint: Constraint | None
    """The form that the answer must have, such as `{"json_schema": {...}}`."""
    caller: str | None
    """On whose behalf this is asked: callers that wait for a place take turns. Default: all are one."""
    n: int | None
    """How many answers, 1 to 8, one after the other, each with a seed of its own where `seed` is given. Usage counts the
    prompt once; the route and times of a whole answer are those of the last. Default: 1."""


class ChatOptions(Options, total=False):
    """Options of an answer to a chat: those of any answer, and what the chat template is given."""

    tools: Sequence[Mapping[str, Any]] | None
    """Tools that the model may call, each in the shape of OpenAI's. A call that it writes is text of the answer."""
    documents: Sequence[Mapping[str, Any]] | None
    """Documents that the answer is grounded on, for templates that know any."""
    enable_thinking: bool | None
    """Whether the model thinks before it answers, for templates that can choose: one of `chat_template_kwargs`."""
    chat_template_kwargs: Mapping[str, Any] | None
    """Further variables of the template, by name."""
    chat_template: str | None
    """A template (Jinja) in the place of the model's own."""
    parse_content: bool | None
    """Read control tokens in messages and inputs too, where a text can then forge turns. Default: they are plain text."""


_OPTIONS = tuple(Options.__annotations__)
_OF_TEMPLATES = tuple(name for name in ChatOptions.__annotations__ if name not in _OPTIONS)

_MOST_CHOICES = 8
_SEEDS = 1 << 64


def _choices(options: Options) -> list[Asked]:
    """What is asked of each choice."""
    given = _given(options)
    n = given.pop("n")
    if n is None:
        n = 1
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n is a number of answers, not {n!r}")
    if not 1 <= n <= _MOST_CHOICES:
        raise InvalidArgumentError(f"n is 1 to {_MOST_CHOICES}, not {n}")
    seed = given["seed"]
    if n == 1 or seed is None:
        return [given] * n
    # The first keeps the seed as it is, so that what is none is refused.
    return [given, *({**given, "seed": (seed + index) % _SEEDS} for index in range(1, n))]


def _templated(options: ChatOptions) -> tuple[Options, dict[str, Any]]:
    """The options of any answer, and what is for the template, as JSON."""
    rest: dict[str, Any] = {name: value for name, value in options.items() if name not in _OF_TEMPLATES}
    odd = [name for name in rest if name not in _OPTIONS]
    if odd:
        raise TypeError(f"there is no option {odd[0]!r}; options are {', '.join(_OPTIONS + _OF_TEMPLATES)}")
    variables = options.get("chat_template_kwargs")
    thinking = options.get("enable_thinking")
    if thinking is not None and (variables is None or isinstance(variables, Mapping)):
        if variables and "enable_thinking" in variables:
            raise TypeError("enable_thinking is given twice")
        variables = {**(variables or {}), "enable_thinking": thinking}
    tools, documents = options.get("tools"), options.get("documents")
    given = {
        "tools": None if tools is None else _json(tools),
        "documents": None if documents is None else _json(documents),
        "kwargs": None if variables is None else _json(variables),
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
        given["constraint"] = _json(given["constraint"])
    if isinstance(given["logit_bias"], Mapping):
        given["logit_bias"] = dict(given["logit_bias"])
    return given


class _Base:
    """What both worlds share: the configuration, and the calls that do not wait."""

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        preset: Literal["offline", "lan", "public"] | None = None,
        *,
        network: str | None = None,
        private: bool | None = None,
        join: str | None = None,
        listen: Sequence[str] | None = None,
        bootstrap: Sequence[str] | None = None,
        mdns: bool | None = None,
        relay: bool | None = None,
        external: Sequence[str] | None = None,
        upnp: bool | None = None,
        max_traffic: int | None = None,
        serve: bool | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
        keep_awake: bool | None = None,
        memory: int | None = None,
        max_disk_bytes: int | None = None,
        place: int | None = None,
        download_rate: int | None = None,
        context: int | None = None,
        sessions: int | None = None,
        kv: Literal["full", "q8_0"] | None = None,
        credit_limit: int | None = None,
        engine: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        """A node that is not started yet.

        `data_dir`: for keys, models and the store. `preset`: how it meets others. `network`: the swarm's name.
        `private`: found a swarm that only nodes with an invite can enter. `join`: an invite; the data directory stays in
        its swarm. `listen`, `bootstrap`: multiaddrs. `mdns`: find peers on the LAN. `relay`: carry circuits for peers
        that nobody can connect to, without being able to read them. `external`: multiaddrs under which others reach this
        node although it does not listen there. `upnp`: ask the router to forward ports. `max_traffic`: most bytes a second
        over the wire, both ways together. `serve`: compute for others. `threads`: compute threads. `gpu_layers`: layers
        that accelerators compute, of all models together. `keep_awake`: keep the cores awake while steps come from afar, which
        takes power and makes tokens faster. `memory`: bytes for weights and KV. `max_disk_bytes`: most that
        shards may take on the disk. `place`: fetch what the swarm is short of, up to so many bytes of disk.
        `download_rate`: bytes a second from the web at most. `context`: positions of a session, prompt and answer
        together; by default the model's own as far as the memory allows, 512 at least. `sessions`: how many a stage
        computes at once. `kv`: how keys and values are kept; `q8_0` takes about half of the memory, and refuses exact answers. `credit_limit`: credits that a peer may owe before it is not computed for
        any more, one being a million parameters applied to one token; by default nobody is refused. `engine`: `llama.cpp`
        or `candle`. `chat_template`: a template (Jinja) in the place of those that models have, unless a chat brings one.
        """
        self._native: NativeNode | None = None
        self._config: dict[str, Any] = {
            "data_dir": data_dir,
            "preset": preset,
            "network": network,
            "private": private,
            "join": join,
            "listen": listen and list(listen),
            "bootstrap": bootstrap and list(bootstrap),
            "mdns": mdns,
            "relay": relay,
            "external": external and list(external),
            "upnp": upnp,
            "max_traffic": max_traffic,
            "serve": serve,
            "threads": threads,
            "gpu_layers": gpu_layers,
            "keep_awake": keep_awake,
            "memory": memory,
            "max_disk_bytes": max_disk_bytes,
            "place": place,
            "download_rate": download_rate,
            "context": context,
            "sessions": sessions,
            "kv": kv,
            "credit_limit": credit_limit,
            "engine": engine,
            "chat_template": chat_template,
        }

    def _running(self) -> NativeNode:
        if self._native is None:
            raise ClosedError("the node does not run: call start(), or use it in a `with` block")
        return self._native

    @property
    def id(self) -> str:
        """The node's id, hexadecimal."""
        return self._running().id

    @property
    def addresses(self) -> list[str]:
        """The bound addresses, to be given to others."""
        return self._running().addresses

    def status(self) -> Status:
        """How the node is."""
        return Status(json.loads(self._running().status()))

    def models(self) -> list[Model]:
        """The models it knows. One that cannot run here, or does not fit into the memory within reach now, is not `ready`;
        its `findings` and `warnings` say why."""
        return Model.listed(json.loads(self._running().models()))

    def peers(self) -> list[Peer]:
        """The peers it knows."""
        return Peer.listed(json.loads(self._running().peers()))

    def invite(self, good_for: float = 7 * 86_400) -> str:
        """An invite to this node's swarm, good for so many seconds. Whoever has it may enter."""
        return self._running().invite(good_for)

    def balances(self) -> list[Balance]:
        """How it stands with each peer that has computed for it, or it for the peer; amounts in credits."""
        return Balance.listed(json.loads(self._running().balances()))


class Node(_Base):
    """A node. Every call that waits lets other threads run, and ends on Ctrl-C."""

    def start(self) -> Node:
        """Starts the node, and waits until it runs; one that runs is left alone."""
        if self._native is None:
            self._native = NativeNode.start(self._config)
        return self

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(DEADLINE)

    def connect(self, address: str) -> str:
        """Dials a peer (multiaddr), waits until it has said hello, and gives its id."""
        return self._running().connect(address)

    def import_model(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        parts: Sequence[Part] | None = None,
        anyway: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Model:
        """Cuts a local GGUF into shards. `progress` is called with the bytes done and in all.

        `path`: of a model in several files (`NAME-00001-of-00003.gguf`) any part; the others lie beside it.

        `name`: an alias beside those that the model has; no other model may have it. A model that cannot run here is refused before its weights are
        read, with its `report` on the error; with `anyway` it is kept for others. `warnings` and `findings` of the model
        say what of it cannot be used here.
        """
        kept = None if parts is None else list(parts)
        return Model(json.loads(self._running().import_model(path, name, kept, anyway, progress)))

    def import_url(
        self,
        address: str,
        *,
        name: str | None = None,
        parts: Sequence[Part] | None = None,
        anyway: bool = False,
        hub: str | None = None,
        token: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Model:
        """Imports a GGUF from the web as `import_model` does a local one, with the same result.

        `address`: an https address, or `hf:owner/repo/path/file.gguf` with `@revision` behind it where it is not `main`.
        `hub`: the address of a mirror. `token`: for files that not everybody may have. What came is kept when the import
        ends early, and the next one of that file goes on from there.
        """
        kept = None if parts is None else list(parts)
        source = (address, hub, token)
        return Model(json.loads(self._running().import_url(source, name, kept, anyway, progress)))

    def examine(self, path: str | os.PathLike[str], *, parts: Sequence[Part] | None = None) -> ImportReport:
        """What of a local GGUF cannot run here, asked of its header as `import_model` does; nothing is kept.

        `parts`: what would be kept. A node that keeps no metadata needs no tokenizer.
        """
        kept = None if parts is None else list(parts)
        return ImportReport(json.loads(self._running().examine(path, kept)))

    def examine_url(
        self,
        address: str,
        *,
        parts: Sequence[Part] | None = None,
        hub: str | None = None,
        token: str | None = None,
    ) -> ImportReport:
        """The same of a GGUF on the web, of which only the header is fetched; the rest as in `import_url`."""
        kept = None if parts is None else list(parts)
        return ImportReport(json.loads(self._running().examine_url((address, hub, token), kept)))

    def pull(
        self, model: str, part: Part = "all", *, progress: Callable[[int, int], object] | None = None
    ) -> Model:
        """Fetches shards of a model from peers, verified while they stream."""
        return Model(json.loads(self._running().pull(model, part, progress)))

    def pull_url(
        self,
        model: str,
        address: str,
        part: Part = "all",
        *,
        hub: str | None = None,
        token: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Model:
        """Fetches shards of a known model from peers and from its GGUF on the web; the rest as in `import_url`."""
        source = (address, hub, token)
        return Model(json.loads(self._running().pull_url(model, source, part, progress)))

    def pin(self, model: str) -> None:
        """From now on `make_room` leaves the model alone, after a restart too."""
        self._running().pin(model, True)

    def unpin(self, model: str) -> None:
        """Takes a pin back."""
        self._running().pin(model, False)

    def add_alias(self, model: str, alias: str) -> Model:
        """Gives a known model an alias, beside those that it has.

        `AliasTakenError` where another model has it, is called so by its file, or has an id that begins so; `InvalidArgumentError`
        where it would be read as an id, or has a character that nobody sees.
        """
        return Model(json.loads(self._running().add_alias(model, alias)))

    def move_alias(self, model: str, alias: str) -> Model:
        """The same, and the model that had the alias, or was called so by its file, has it no longer."""
        return Model(json.loads(self._running().move_alias(model, alias)))

    def remove_alias(self, alias: str) -> None:
        """Takes an alias from the model that has it. What files and peers call the model stays."""
        self._running().remove_alias(alias)

    def remove(self, model: str) -> int:
        """Removes a model from here, with its aliases; gives the bytes that its shards took.

        Shards that another model needs stay, as does the file that it was imported from. `InvalidArgumentError` where it is
        pinned or `model` is only the beginning of a name, `OverloadedError` where something of it is computed or fetched now.
        """
        return self._running().remove(model)

    def make_room(self, bytes: int) -> list[str]:
        """Removes the models used longest ago until so many bytes more have room; gives the ids of those that went.

        Pinned ones stay, and those that are loaded here. Where the others would not make enough room, none goes.
        """
        return self._running().make_room(bytes)

    def plan(self, model: str) -> Plan:
        """Which stages would answer, without acting."""
        return Plan(json.loads(self._running().plan(model)))

    @overload
    def chat(
        self, model: str, messages: Messages, *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion: ...
    @overload
    def chat(self, model: str, messages: Messages, *, stream: Literal[True], **options: Unpack[ChatOptions]) -> ChatStream: ...
    def chat(
        self, model: str, messages: Messages, *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | ChatStream:
        """Asks a model; `stream=True` gives the answer as it comes. See `ChatOptions`."""
        rest, templated = _templated(options)
        told, choices = _messages(messages), _choices(rest)

        def ask(asked: Asked) -> NativeGeneration:
            return self._running().chat(model, told, asked, templated)

        shape = chat_shape(model)
        return Stream(shape, choices, ask) if stream else finish(shape, choices, ask)

    @overload
    def generate(
        self, model: str, prompt: str, *, stream: Literal[False] = False, **options: Unpack[Options]
    ) -> TextCompletion: ...
    @overload
    def generate(self, model: str, prompt: str, *, stream: Literal[True], **options: Unpack[Options]) -> TextStream: ...
    def generate(
        self, model: str, prompt: str, *, stream: bool = False, **options: Unpack[Options]
    ) -> TextCompletion | TextStream:
        """Continues a plain text; `stream=True` gives it as it comes. See `Options`."""
        choices = _choices(options)

        def ask(asked: Asked) -> NativeGeneration:
            return self._running().generate(model, prompt, asked)

        shape = text_shape(model)
        return Stream(shape, choices, ask) if stream else finish(shape, choices, ask)

    def embed(
        self, model: str, texts: str | Sequence[str], *, pooling: Pooling = "mean", caller: str | None = None
    ) -> Embeddings:
        """Makes a vector of length 1 of each text; `pooling` is what is taken of the states of its tokens, and `caller` says
        on whose behalf this is asked: callers that wait for a place take turns."""
        return Embeddings(json.loads(self._running().embed(model, _texts(texts), pooling, caller)))

    def shutdown(self, deadline: float = DEADLINE) -> None:
        """Stops accepting, drains at most `deadline` seconds, flushes and closes. May be called again."""
        native, self._native = self._native, None
        if native is not None:
            native.shutdown(deadline)


def _on_loop(progress: Callable[[int, int], object] | None) -> Callable[[int, int], object] | None:
    """Calls `progress` on the running loop's thread."""
    if progress is None:
        return None
    loop = asyncio.get_running_loop()
    return lambda done, total: loop.call_soon_threadsafe(progress, done, total)


class AsyncNode(_Base):
    """The twin of `Node` for asyncio. Cancelling a call cancels its work."""

    async def start(self) -> AsyncNode:
        """Starts the node, and waits until it runs; one that runs is left alone."""
        if self._native is None:
            self._native = await NativeNode.start_async(self._config)
        return self

    async def __aenter__(self) -> AsyncNode:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown(DEADLINE)

    async def connect(self, address: str) -> str:
        """Dials a peer (multiaddr), waits until it has said hello, and gives its id."""
        return await self._running().connect_async(address)

    async def import_model(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        parts: Sequence[Part] | None = None,
        anyway: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Model:
        """Cuts a local GGUF into shards. `progress` is called with the bytes done and in all.

        `path`: of a model in several files (`NAME-00001-of-00003.gguf`) any part; the others lie beside it.

        `name`: an alias beside those that the model has; no other model may have it. A model that cannot run here is refused before its weights are
        read, with its `report` on the error; with `anyway` it is kept for others. `warnings` and `findings` of the model
        say what of it cannot be used here.
        """
        kept = None if parts is None else list(parts)
        return Model(json.loads(await self._running().import_model_async(path, name, kept, anyway, _on_loop(progress))))

    async def import_url(
        self,
        address: str,
        *,
        name: str | None = None,
        parts: Sequence[Part] | None = None,
        anyway: bool = False,
        hub: str | None = None,
        token: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Model:
        """Imports a GGUF from the web as `import_model` does a local one, with the same result.

        `address`: an https address, or `hf:owner/repo/path/file.gguf` with `@revision` behind it where it is not `main`.
        `hub`: the address of a mirror. `token`: for files that not everybody may have. What came is kept when the import
        ends early, and the next one of that file goes on from there.
        """
        kept = None if parts is None else list(parts)
        source = (address, hub, token)
        return Model(json.loads(await self._running().import_url_async(source, name, kept, anyway, _on_loop(progress))))

    async def examine(self, path: str | os.PathLike[str], *, parts: Sequence[Part] | None = None) -> ImportReport:
        """What of a local GGUF cannot run here, asked of its header as `import_model` does; nothing is kept.

        `parts`: what would be kept. A node that keeps no metadata needs no tokenizer.
        """
        kept = None if parts is None else list(parts)
        return ImportReport(json.loads(await self._running().examine_async(path, kept)))

    async def examine_url(
        self,
        address: str,
        *,
        parts: Sequence[Part] | None = None,
        hub: str | None = None,
        token: str | None = None,
    ) -> ImportReport:
        """The same of a GGUF on the web, of which only the header is fetched; the rest as in `import_url`."""
        kept = None if parts is None else list(parts)
        return ImportReport(json.loads(await self._running().examine_url_async((address, hub, token), kept)))

    async def pull(
        self, model: str, part: Part = "all", *, progress: Callable[[int, int], object] | None = None
    ) -> Model:
        """Fetches shards of a model from peers, verified while they stream."""
        return Model(json.loads(await self._running().pull_async(model, part, _on_loop(progress))))

    async def pull_url(
        self,
        model: str,
        address: str,
        part: Part = "all",
        *,
        hub: str | None = None,
        token: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Model:
        """Fetches shards of a known model from peers and from its GGUF on the web; the rest as in `import_url`."""
        source = (address, hub, token)
        return Model(json.loads(await self._running().pull_url_async(model, source, part, _on_loop(progress))))

    async def pin(self, model: str) -> None:
        """From now on `make_room` leaves the model alone, after a restart too."""
        await self._running().pin_async(model, True)

    async def unpin(self, model: str) -> None:
        """Takes a pin back."""
        await self._running().pin_async(model, False)

    async def add_alias(self, model: str, alias: str) -> Model:
        """Gives a known model an alias, beside those that it has.

        `AliasTakenError` where another model has it, is called so by its file, or has an id that begins so; `InvalidArgumentError`
        where it would be read as an id, or has a character that nobody sees.
        """
        return Model(json.loads(await self._running().add_alias_async(model, alias)))

    async def move_alias(self, model: str, alias: str) -> Model:
        """The same, and the model that had the alias, or was called so by its file, has it no longer."""
        return Model(json.loads(await self._running().move_alias_async(model, alias)))

    async def remove_alias(self, alias: str) -> None:
        """Takes an alias from the model that has it. What files and peers call the model stays."""
        await self._running().remove_alias_async(alias)

    async def remove(self, model: str) -> int:
        """Removes a model from here, with its aliases; gives the bytes that its shards took.

        Shards that another model needs stay, as does the file that it was imported from. `InvalidArgumentError` where it is
        pinned or `model` is only the beginning of a name, `OverloadedError` where something of it is computed or fetched now.
        """
        return await self._running().remove_async(model)

    async def make_room(self, bytes: int) -> list[str]:
        """Removes the models used longest ago until so many bytes more have room; gives the ids of those that went.

        Pinned ones stay, and those that are loaded here. Where the others would not make enough room, none goes.
        """
        return await self._running().make_room_async(bytes)

    async def plan(self, model: str) -> Plan:
        """Which stages would answer, without acting."""
        return Plan(json.loads(await self._running().plan_async(model)))

    @overload
    async def chat(
        self, model: str, messages: Messages, *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion: ...
    @overload
    async def chat(self, model: str, messages: Messages, *, stream: Literal[True], **options: Unpack[ChatOptions]) -> AsyncChatStream: ...
    async def chat(
        self, model: str, messages: Messages, *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | AsyncChatStream:
        """Asks a model; `stream=True` gives the answer as it comes. See `ChatOptions`."""
        rest, templated = _templated(options)
        told, choices = _messages(messages), _choices(rest)

        async def ask(asked: Asked) -> NativeGeneration:
            return await self._running().chat_async(model, told, asked, templated)

        shape = chat_shape(model)
        if stream:
            return AsyncStream(shape, choices, await ask(choices[0]), ask)
        return await finish_async(shape, choices, ask)

    @overload
    async def generate(
        self, model: str, prompt: str, *, stream: Literal[False] = False, **options: Unpack[Options]
    ) -> TextCompletion: ...
    @overload
    async def generate(self, model: str, prompt: str, *, stream: Literal[True], **options: Unpack[Options]) -> AsyncTextStream: ...
    async def generate(
        self, model: str, prompt: str, *, stream: bool = False, **options: Unpack[Options]
    ) -> TextCompletion | AsyncTextStream:
        """Continues a plain text; `stream=True` gives it as it comes. See `Options`."""
        choices = _choices(options)

        async def ask(asked: Asked) -> NativeGeneration:
            return await self._running().generate_async(model, prompt, asked)

        shape = text_shape(model)
        if stream:
            return AsyncStream(shape, choices, await ask(choices[0]), ask)
        return await finish_async(shape, choices, ask)

    async def embed(
        self, model: str, texts: str | Sequence[str], *, pooling: Pooling = "mean", caller: str | None = None
    ) -> Embeddings:
        """Makes a vector of length 1 of each text; `pooling` is what is taken of the states of its tokens, and `caller` says
        on whose behalf this is asked: callers that wait for a place take turns."""
        return Embeddings(json.loads(await self._running().embed_async(model, _texts(texts), pooling, caller)))

    async def shutdown(self, deadline: float = DEADLINE) -> None:
        """Stops accepting, drains at most `deadline` seconds, flushes and closes. May be called again."""
        native, self._native = self._native, None
        if native is not None:
            await native.shutdown_async(deadline)
