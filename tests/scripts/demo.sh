#!/usr/bin/env bash
# Three processes with a different third of a model each, and a coordinator without layers.
#
# BIN: the command line binary. SWARMLLM_TEST_SMOLLM2: the GGUF of the model, read by the import only.
set -euo pipefail

BIN=${BIN:-target/release/swarmllm}
GGUF=${SWARMLLM_TEST_SMOLLM2:?is not set; run this through make}
QUESTION=${QUESTION:-Why is the sky blue? Answer in two sentences.}
TIMEOUT=60 # seconds until a node must be ready or gone
NETWORK="demo-$$"
WORK=$(mktemp -d)
PIDS=()

say() { printf '\n== %s\n' "$*"; }

stop() {
    local pid waited=0
    [ ${#PIDS[@]} -gt 0 ] || return 0
    kill -TERM "${PIDS[@]}" 2>/dev/null || true
    for pid in "${PIDS[@]}"; do
        while kill -0 "$pid" 2>/dev/null && [ $waited -lt $((TIMEOUT * 10)) ]; do
            sleep 0.1
            waited=$((waited + 1))
        done
        kill -KILL "$pid" 2>/dev/null && echo "node $pid had to be killed" >&2
        wait "$pid" || { echo "node $pid ended with $?" >&2; FAILED=1; }
    done
    PIDS=()
}
cleanup() { stop; rm -rf "$WORK"; }
trap cleanup EXIT
trap 'exit 130' INT TERM

# Prints a JSON field of the first line of a file; lists are joined by spaces.
field() { python3 -c '
import json, sys
value = json.loads(open(sys.argv[1]).readline())[sys.argv[2]]
print(" ".join(value) if isinstance(value, list) else value)' "$1" "$2"; }

say "splitting the model: a third of its layers for each host, metadata and embedding for the coordinator"
"$BIN" import "$GGUF" --name smollm2 --data-dir "$WORK/one" --layers 0..10
"$BIN" import "$GGUF" --name smollm2 --data-dir "$WORK/two" --layers 10..20
"$BIN" import "$GGUF" --name smollm2 --data-dir "$WORK/three" --layers 20..30,head
"$BIN" import "$GGUF" --name smollm2 --data-dir "$WORK/coordinator" --coordinator

say "starting three nodes"
PEERS=()
for host in one two three; do
    "$BIN" run --json --data-dir "$WORK/$host" --network "$NETWORK" --no-mdns --no-http \
        --listen /ip4/127.0.0.1/tcp/0 >"$WORK/$host.ready" 2>"$WORK/$host.log" </dev/null &
    PIDS+=($!)
    for _ in $(seq $((TIMEOUT * 10))); do
        [ -s "$WORK/$host.ready" ] && break
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    [ -s "$WORK/$host.ready" ] || { cat "$WORK/$host.log" >&2; echo "node $host did not start" >&2; exit 1; }
    address=$(field "$WORK/$host.ready" addresses)
    PEERS+=(--peer "${address%% *}")
    echo "$host: process $!, $(field "$WORK/$host.ready" id | cut -c1-8), ${address%% *}"
done

say "asking: $QUESTION"
"$BIN" chat smollm2 --data-dir "$WORK/coordinator" --network "$NETWORK" --no-mdns "${PEERS[@]}" \
    --temperature 0 --max-tokens 96 --message "$QUESTION" </dev/null

say "stopping"
FAILED=0
stop
[ "$FAILED" = 0 ] || exit 1

say "balances, signed by both sides, in credits (a million parameters applied to one token)"
"$BIN" balances --data-dir "$WORK/coordinator" --network "$NETWORK"
for node in one two three coordinator; do
    "$BIN" balances --json --data-dir "$WORK/$node" --network "$NETWORK" >"$WORK/$node.balances"
done
python3 - "$WORK"/{coordinator,one,two,three}.balances <<'PY'
import json, sys

spent, *earned = ([(b["spent"], b["earned"]) for b in json.load(open(path))] for path in sys.argv[1:])
if sorted(s for s, _ in spent) != sorted(e for host in earned for _, e in host) or not all(s for s, _ in spent):
    sys.exit(f"the coordinator signed for {spent}, the hosts for {earned}")
PY

say "contents of each data directory"
python3 - "$GGUF" "$WORK"/{one,two,three,coordinator} <<'PY'
import os, pathlib, sys

whole = os.path.getsize(sys.argv[1])
for directory in map(pathlib.Path, sys.argv[2:]):
    files = {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}
    shards = sum(size for path, size in files.items() if path.parent.name == "shards")
    largest = max(files.values())
    print(f"{directory.name:<12} shards {shards / 1e6:6.1f} MB, largest file {largest / 1e6:6.1f} MB, the GGUF {whole / 1e6:.1f} MB")
    if not 0 < shards < whole or largest > shards:
        sys.exit(f"{directory.name} holds more than its shards")
PY
say "done: no node ever held the whole model"
