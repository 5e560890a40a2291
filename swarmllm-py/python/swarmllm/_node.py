"""Nodes, blocking and for asyncio. `None` means "not given": the library's own default."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from ._answers import (
    AsyncChatStream,
    AsyncStream,
    AsyncTextStream,
    ChatStream,
    ChoiceOptions,
    Stream,
    TextStream,
    chat_shape,
    finish,
    finish_async,
    text_shape,
)
from ._options import (
    ChatOptions,
    Messages,
    Options,
    Part,
    Pooling,
    list_choices,
    messages_json,
    split_options,
    text_list,
)
from ._records import Balance, ChatCompletion, Embeddings, ImportReport, Model, Peer, Plan, Status, TextCompletion
from ._swarmllm import ClosedError, NativeGeneration, NativeNode

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEADLINE = 5.0
"""Seconds that a node may drain when its `with` block ends."""

_Progress = Callable[[int, int], object] | None


class _Base:
    """The configuration, and the calls that do not wait."""

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
        """Creates a node without starting it.

        `data_dir`: directory of keys, models and the store.
        `preset`: how the node finds and reaches peers.
        `network`: name of the swarm.
        `private`: creates a swarm that only nodes with an invite can enter.
        `join`: an invite; the data directory stores the membership.
        `listen`, `bootstrap`: multiaddrs.
        `mdns`: find peers on the LAN.
        `relay`: relay connections for peers behind NAT; the relayed bytes are encrypted between the peers.
        `external`: external multiaddrs of this node, such as forwarded ports.
        `upnp`: ask the router to forward ports.
        `max_traffic`: limit of bytes per second on the network, sent and received together.
        `serve`: compute stages for peers.
        `threads`: compute threads.
        `gpu_layers`: layers on accelerators, of all models together.
        `keep_awake`: keep the cores awake while the node computes steps for remote peers: faster tokens, more power; Linux only.
        `memory`: budget for weights and KV cache, in bytes.
        `max_disk_bytes`: disk budget for shards.
        `place`: fetch shards that the swarm has too few copies of, up to this many bytes of disk.
        `download_rate`: limit of bytes per second from the web.
        `context`: context length of a session in tokens, prompt and answer together; by default the model's own as far as
        the memory allows, at least 512.
        `sessions`: concurrent sessions per stage.
        `kv`: format of the KV cache; `q8_0` takes about half of the memory and refuses `exact`.
        `credit_limit`: credits that a peer may owe before the node refuses to compute for it; by default no limit. One credit
        is a million parameters applied to one token.
        `engine`: `llama.cpp` or `candle`.
        `chat_template`: a template (Jinja) that replaces the models' own; a chat's `chat_template` takes precedence.
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
            raise ClosedError("the node is not running: call start(), or use it in a `with` block")
        return self._native

    @property
    def id(self) -> str:
        """The node's id, hexadecimal."""
        return self._running().id

    @property
    def addresses(self) -> list[str]:
        """The bound addresses, for other nodes to dial."""
        return self._running().addresses

    def status(self) -> Status:
        """The state of the node."""
        return Status(json.loads(self._running().status()))

    def models(self) -> list[Model]:
        """The models that the node knows. `ready` is false for a model that cannot run here, or does not fit into the
        reachable memory now; `findings` and `warnings` give the reasons."""
        return Model.listed(json.loads(self._running().models()))

    def peers(self) -> list[Peer]:
        """The peers that the node knows."""
        return Peer.listed(json.loads(self._running().peers()))

    def invite(self, good_for: float = 7 * 86_400) -> str:
        """An invite to this node's swarm, valid for `good_for` seconds. Whoever holds it can join the swarm."""
        return self._running().invite(good_for)

    def balances(self) -> list[Balance]:
        """The balance with each peer that has computed for the node or for which the node has computed, in credits."""
        return Balance.listed(json.loads(self._running().balances()))


class Node(_Base):
    """A node. Calls that wait release the GIL and end on Ctrl-C."""

    def start(self) -> Node:
        """Starts the node and waits until it runs. Has no effect on a running node."""
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
        """Dials a peer (multiaddr), waits until the handshake is complete, and returns the peer's id."""
        return self._running().connect(address)

    def import_model(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        parts: Sequence[Part] | None = None,
        anyway: bool = False,
        progress: _Progress = None,
    ) -> Model:
        """Splits a local GGUF into shards. `progress` receives the bytes done and in all.

        `path`: of a model in several files (`NAME-00001-of-00003.gguf`) any of them; the others are beside it.
        `name`: an alias that no other model has.
        `parts`: the parts to keep, at least one.
        `anyway`: keep a model that cannot run here for other nodes. Without it, such a model is refused before its weights are
        read, with its `report` on the error.

        `warnings` and `findings` of the result describe what of the model cannot be used here.
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
        progress: _Progress = None,
    ) -> Model:
        """Imports a GGUF from the web, with the result of `import_model`.

        `address`: an https address, or `hf:owner/repo/path/file.gguf`, followed by `@revision` if it is not `main`.
        `hub`: the address of a mirror. `token`: for files with restricted access.

        An import that ends early keeps the bytes that it has fetched; the next import of the file continues from there.
        """
        kept = None if parts is None else list(parts)
        source = (address, hub, token)
        return Model(json.loads(self._running().import_url(source, name, kept, anyway, progress)))

    def examine(self, path: str | os.PathLike[str], *, parts: Sequence[Part] | None = None) -> ImportReport:
        """Checks from the header of a local GGUF what of it cannot run here, as `import_model` does, and keeps nothing.

        `parts`: the parts that an import would keep. A node that keeps no metadata needs no tokenizer.
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
        """As `examine`, for a GGUF on the web. Only the header is fetched. Arguments as in `import_url`."""
        kept = None if parts is None else list(parts)
        return ImportReport(json.loads(self._running().examine_url((address, hub, token), kept)))

    def pull(
        self, model: str, part: Part = "all", *, progress: _Progress = None
    ) -> Model:
        """Fetches shards of a model from peers and verifies them while they stream."""
        return Model(json.loads(self._running().pull(model, part, progress)))

    def pull_url(
        self,
        model: str,
        address: str,
        part: Part = "all",
        *,
        hub: str | None = None,
        token: str | None = None,
        progress: _Progress = None,
    ) -> Model:
        """Fetches shards of a known model from peers and from its GGUF on the web. Arguments as in `import_url`."""
        source = (address, hub, token)
        return Model(json.loads(self._running().pull_url(model, source, part, progress)))

    def pin(self, model: str) -> None:
        """Pins the model: `make_room` and `remove` keep it. Survives a restart."""
        self._running().pin(model, True)

    def unpin(self, model: str) -> None:
        """Removes the pin of a model."""
        self._running().pin(model, False)

    def add_alias(self, model: str, alias: str) -> Model:
        """Adds an alias to a known model.

        `AliasTakenError` if another model has the alias, has it as its name in its file, or has an id that begins with it;
        `InvalidArgumentError` if the alias would be read as an id, or contains an invisible character.
        """
        return Model(json.loads(self._running().add_alias(model, alias)))

    def move_alias(self, model: str, alias: str) -> Model:
        """As `add_alias`, and takes the alias or name from the model that had it."""
        return Model(json.loads(self._running().move_alias(model, alias)))

    def remove_alias(self, alias: str) -> None:
        """Removes an alias from its model. Names of the model in files and at peers stay."""
        self._running().remove_alias(alias)

    def remove(self, model: str) -> int:
        """Removes a model from this node, with its aliases; returns the bytes freed.

        Shards that another model needs stay, and so does the imported file. `InvalidArgumentError` if the model is pinned or
        `model` is only a prefix of its name, `OverloadedError` while the model is computed or fetched.
        """
        return self._running().remove(model)

    def make_room(self, bytes: int) -> list[str]:
        """Removes the least recently used models until `bytes` more fit; returns the ids of the removed models.

        Pinned and loaded models stay. If the other models do not free enough, none is removed.
        """
        return self._running().make_room(bytes)

    def plan(self, model: str) -> Plan:
        """The stages that would answer. Nothing is computed."""
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
        """Answers a chat; `stream=True` returns a stream of chunks. Options: `ChatOptions`."""
        rest, template = split_options(options)
        text, choices = messages_json(messages), list_choices(rest)

        def ask(choice: ChoiceOptions) -> NativeGeneration:
            return self._running().chat(model, text, choice, template)

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
        """Continues a plain text; `stream=True` returns a stream of chunks. Options: `Options`."""
        choices = list_choices(options)

        def ask(choice: ChoiceOptions) -> NativeGeneration:
            return self._running().generate(model, prompt, choice)

        shape = text_shape(model)
        return Stream(shape, choices, ask) if stream else finish(shape, choices, ask)

    def embed(
        self, model: str, texts: str | Sequence[str], *, pooling: Pooling = "mean", caller: str | None = None
    ) -> Embeddings:
        """Computes an embedding of length 1 of each text. `pooling`: how the hidden states of its tokens become one vector.
        `caller`: the name on whose behalf this is asked; waiting callers take turns."""
        return Embeddings(json.loads(self._running().embed(model, text_list(texts), pooling, caller)))

    def shutdown(self, deadline: float = DEADLINE) -> None:
        """Stops accepting work, drains at most `deadline` seconds, flushes and closes. May be called again."""
        native, self._native = self._native, None
        if native is not None:
            native.shutdown(deadline)


def _on_loop(progress: _Progress) -> _Progress:
    """Makes `progress` run on the thread of the running loop."""
    if progress is None:
        return None
    loop = asyncio.get_running_loop()
    return lambda done, total: loop.call_soon_threadsafe(progress, done, total)


class AsyncNode(_Base):
    """`Node` for asyncio: the same calls, awaitable. Cancelling a call cancels its work."""

    async def start(self) -> AsyncNode:
        """As `Node.start`."""
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
        """As `Node.connect`."""
        return await self._running().connect_async(address)

    async def import_model(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        parts: Sequence[Part] | None = None,
        anyway: bool = False,
        progress: _Progress = None,
    ) -> Model:
        """As `Node.import_model`."""
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
        progress: _Progress = None,
    ) -> Model:
        """As `Node.import_url`."""
        kept = None if parts is None else list(parts)
        source = (address, hub, token)
        return Model(json.loads(await self._running().import_url_async(source, name, kept, anyway, _on_loop(progress))))

    async def examine(self, path: str | os.PathLike[str], *, parts: Sequence[Part] | None = None) -> ImportReport:
        """As `Node.examine`."""
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
        """As `Node.examine_url`."""
        kept = None if parts is None else list(parts)
        return ImportReport(json.loads(await self._running().examine_url_async((address, hub, token), kept)))

    async def pull(
        self, model: str, part: Part = "all", *, progress: _Progress = None
    ) -> Model:
        """As `Node.pull`."""
        return Model(json.loads(await self._running().pull_async(model, part, _on_loop(progress))))

    async def pull_url(
        self,
        model: str,
        address: str,
        part: Part = "all",
        *,
        hub: str | None = None,
        token: str | None = None,
        progress: _Progress = None,
    ) -> Model:
        """As `Node.pull_url`."""
        source = (address, hub, token)
        return Model(json.loads(await self._running().pull_url_async(model, source, part, _on_loop(progress))))

    async def pin(self, model: str) -> None:
        """As `Node.pin`."""
        await self._running().pin_async(model, True)

    async def unpin(self, model: str) -> None:
        """As `Node.unpin`."""
        await self._running().pin_async(model, False)

    async def add_alias(self, model: str, alias: str) -> Model:
        """As `Node.add_alias`."""
        return Model(json.loads(await self._running().add_alias_async(model, alias)))

    async def move_alias(self, model: str, alias: str) -> Model:
        """As `Node.move_alias`."""
        return Model(json.loads(await self._running().move_alias_async(model, alias)))

    async def remove_alias(self, alias: str) -> None:
        """As `Node.remove_alias`."""
        await self._running().remove_alias_async(alias)

    async def remove(self, model: str) -> int:
        """As `Node.remove`."""
        return await self._running().remove_async(model)

    async def make_room(self, bytes: int) -> list[str]:
        """As `Node.make_room`."""
        return await self._running().make_room_async(bytes)

    async def plan(self, model: str) -> Plan:
        """As `Node.plan`."""
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
        """As `Node.chat`."""
        rest, template = split_options(options)
        text, choices = messages_json(messages), list_choices(rest)

        async def ask(choice: ChoiceOptions) -> NativeGeneration:
            return await self._running().chat_async(model, text, choice, template)

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
        """As `Node.generate`."""
        choices = list_choices(options)

        async def ask(choice: ChoiceOptions) -> NativeGeneration:
            return await self._running().generate_async(model, prompt, choice)

        shape = text_shape(model)
        if stream:
            return AsyncStream(shape, choices, await ask(choices[0]), ask)
        return await finish_async(shape, choices, ask)

    async def embed(
        self, model: str, texts: str | Sequence[str], *, pooling: Pooling = "mean", caller: str | None = None
    ) -> Embeddings:
        """As `Node.embed`."""
        return Embeddings(json.loads(await self._running().embed_async(model, text_list(texts), pooling, caller)))

    async def shutdown(self, deadline: float = DEADLINE) -> None:
        """As `Node.shutdown`."""
        native, self._native = self._native, None
        if native is not None:
            await native.shutdown_async(deadline)
