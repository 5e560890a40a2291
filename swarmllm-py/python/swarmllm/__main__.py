"""The console command `swarmllm` of the Python package. The native command line has more commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import swarmllm

INTERRUPTED = 130


def _show(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _node(args: argparse.Namespace) -> swarmllm.Node:
    return swarmllm.Node(args.data_dir, args.preset, network=args.network, bootstrap=args.bootstrap)


def _version(_args: argparse.Namespace) -> None:
    print(swarmllm.__version__)


def _doctor(args: argparse.Namespace) -> None:
    with _node(args) as node:
        _show({"version": swarmllm.__version__, "status": node.status(), "peers": node.peers()})


def _models(args: argparse.Namespace) -> None:
    with _node(args) as node:
        _show(node.models())


def _import(args: argparse.Namespace) -> None:
    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty() and total:
            print(f"\r{100 * done // total:3} %", end="", file=sys.stderr, flush=True)

    with _node(args) as node:
        _show(node.import_model(args.path, name=args.name, progress=progress))


def _chat(args: argparse.Namespace) -> None:
    with _node(args) as node:
        stream = node.chat(
            args.model, args.message, stream=True, max_tokens=args.max_tokens, temperature=args.temperature
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content, end="", flush=True)
            for stage in chunk.route or []:
                where = f"layers {stage.layers.start}..{stage.layers.end}"
                print(f"\n{where} on {stage.node[:8]} by {stage.engine}", end="", file=sys.stderr)
        print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swarmllm", description="An LLM swarm that you can link.")
    parser.add_argument("--data-dir", help="directory for keys, models and the store")
    parser.add_argument("--preset", choices=["offline", "lan", "public"], help="how the node finds and reaches peers")
    parser.add_argument("--network", help="name of the swarm")
    parser.add_argument("--bootstrap", action="append", metavar="MULTIADDR", help="peer to dial at start")
    commands = parser.add_subparsers(required=True, metavar="command")

    commands.add_parser("version", help="print the version").set_defaults(act=_version)
    commands.add_parser("doctor", help="start a node and print its state").set_defaults(act=_doctor)
    commands.add_parser("models", help="list the models known here").set_defaults(act=_models)

    command = commands.add_parser("import", help="split a GGUF into shards")
    command.add_argument("path")
    command.add_argument("--name", help="alias of the model")
    command.set_defaults(act=_import)

    command = commands.add_parser("chat", help="ask a model")
    command.add_argument("model")
    command.add_argument("-m", "--message", required=True)
    command.add_argument("--max-tokens", type=int)
    command.add_argument("--temperature", type=float)
    command.set_defaults(act=_chat)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = _parser().parse_args(arguments)
    try:
        args.act(args)
    except swarmllm.Error as error:
        print(f"swarmllm: {error} ({error.kind}, {error.code})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
