"""Lifecycle: starting, stopping, dropping."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import swarmllm


def threads() -> int:
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted through /proc")
    return len(os.listdir("/proc/self/task"))


def settles(count: int) -> bool:
    """Whether the number of threads falls to `count`; ended threads take a moment."""
    for _ in range(100):
        if threads() <= count:
            return True
        time.sleep(0.05)
    return False


def test_a_stopped_node_refuses_calls() -> None:
    node = swarmllm.Node(preset="offline")
    with pytest.raises(swarmllm.ClosedError):
        node.models()


def test_a_node_returns_its_status(node: swarmllm.Node) -> None:
    status = node.status()
    assert node.id == status.id == status["id"] and len(node.id) == 64
    assert (status.threads, status.peers_connected) == (2, 0)
    assert node.models() == [] and node.peers() == [] and node.balances() == []
    with pytest.raises(AttributeError):
        status.no_such_field


def test_starting_and_stopping_twice_is_harmless(tmp_path: Path) -> None:
    node = swarmllm.Node(tmp_path, "offline").start()
    first = node.id
    assert node.start() is node and node.id == first
    node.shutdown()
    node.shutdown()
    with pytest.raises(swarmllm.ClosedError):
        node.status()
    assert node.start().id == first, "the identity is kept in the data directory"
    node.shutdown()


def test_many_starts_and_stops_leak_no_thread(tmp_path: Path) -> None:
    def cycle() -> None:
        with swarmllm.Node(tmp_path, "offline") as node:
            node.status()

    cycle()
    before = threads()
    for _ in range(10):
        cycle()
    assert settles(before)


def test_a_dropped_node_frees_directory_and_threads(tmp_path: Path) -> None:
    before = threads()
    node = swarmllm.Node(tmp_path, "offline").start()
    assert threads() > before
    del node
    gc.collect()
    assert settles(before)
    swarmllm.Node(tmp_path, "offline").start().shutdown()


def test_two_nodes_in_one_process_find_each_other(tmp_path: Path) -> None:
    def lan(name: str) -> swarmllm.Node:
        listen = ["/ip4/127.0.0.1/tcp/0"]
        return swarmllm.Node(tmp_path / name, network="py-test", listen=listen, mdns=False)

    with lan("a") as a, lan("b") as b:
        assert a.id != b.id
        assert b.connect(a.addresses[0]) == a.id
        assert [peer.id for peer in b.peers() if peer.connected] == [a.id]


def test_an_invited_node_joins_a_private_swarm(tmp_path: Path) -> None:
    def lan(name: str, private: bool | None = None, join: str | None = None) -> swarmllm.Node:
        listen = ["/ip4/127.0.0.1/tcp/0"]
        return swarmllm.Node(tmp_path / name, private=private, join=join, listen=listen, mdns=False)

    with lan("founder", private=True) as founder:
        assert founder.status().private
        with lan("guest", join=founder.invite()) as guest:
            assert guest.connect(founder.addresses[0]) == founder.id
            assert guest.status().network == founder.status().network
        with pytest.raises(swarmllm.InvalidArgumentError, match="expired"):
            lan("late", join=founder.invite(good_for=0)).start()
        with pytest.raises(swarmllm.InvalidArgumentError):
            founder.invite(good_for=-1)


def test_calls_from_many_threads(node: swarmllm.Node) -> None:
    seen: list[str] = []
    workers = [threading.Thread(target=lambda: seen.append(node.status().id)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == [node.id] * 8


def test_an_async_node_starts_and_stops(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarmllm.AsyncNode(tmp_path, "offline") as node:
            assert node.status().id == node.id
            with pytest.raises(swarmllm.ModelNotFoundError):
                await node.chat("no-such-model", "hello")
        with pytest.raises(swarmllm.ClosedError):
            node.models()

    asyncio.run(story())


def test_a_forked_child_gets_a_typed_error(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    program = f"""
import os, signal, swarmllm
node = swarmllm.Node({str(tmp_path)!r}, "offline").start()
child = os.fork()
if child == 0:
    signal.alarm(20)
    try:
        node.plan("m")
        os._exit(1)
    except swarmllm.ForkedError:
        os._exit(0)
    except BaseException:
        os._exit(2)
_, status = os.waitpid(child, 0)
node.shutdown()
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_an_exit_without_shutdown_is_quiet(tmp_path: Path) -> None:
    program = f"import swarmllm; node = swarmllm.Node({str(tmp_path)!r}, 'offline').start()"
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_console_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "swarmllm", "--data-dir", str(tmp_path), "--preset", "offline", *arguments]
        return subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)

    assert run("version").stdout.strip() == swarmllm.__version__
    assert run("models").stdout.strip() == "[]"
    assert '"data_dir"' in run("doctor").stdout
    failed = run("chat", "no-such-model", "-m", "hello")
    assert failed.returncode == 1 and "ModelNotFound, 200" in failed.stderr
