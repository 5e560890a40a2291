"""Fixtures: nodes without network, and the test model if there is one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import swarmllm


@pytest.fixture
def node(tmp_path: Path) -> Iterator[swarmllm.Node]:
    with swarmllm.Node(tmp_path / "data", "offline", threads=2) as node:
        yield node


@pytest.fixture(scope="session")
def gguf() -> str:
    path = os.environ.get("SWARMLLM_TEST_SMOLLM2")
    if not path:
        pytest.skip("SWARMLLM_TEST_SMOLLM2 is not set: nothing that needs a model is tested")
    return path


@pytest.fixture(scope="session")
def model_dir(gguf: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the test model as `smol`."""
    directory = tmp_path_factory.mktemp("smol")
    with swarmllm.Node(directory, "offline") as node:
        node.import_model(gguf, name="smol")
    return directory


@pytest.fixture
def smol(model_dir: Path) -> Iterator[swarmllm.Node]:
    with swarmllm.Node(model_dir, "offline", threads=2) as node:
        yield node
