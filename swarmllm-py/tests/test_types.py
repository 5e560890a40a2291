"""Types: the stubs match the native module, and the package passes a strict check."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import swarmllm


def run(*arguments: str, cwd: Path) -> None:
    ended = subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_the_stubs_match_the_native_module(tmp_path: Path) -> None:
    run("mypy.stubtest", "swarmllm._swarmllm", cwd=tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_user_of_the_package_is_checked_strictly(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        "import swarmllm\n"
        "with swarmllm.Node('d', 'offline') as node:\n"
        "    text: str = node.chat('m', 'x', max_tokens=1).choices[0].message.content\n"
        "    for chunk in node.chat('m', 'x', stream=True):\n"
        "        text += chunk.choices[0].delta.content\n"
        "    form: swarmllm.Constraint = {'json_schema': {'type': 'object'}}\n"
        "    answer = node.chat('m', 'x', constraint=form, logprobs=2, logit_bias={1: -100})\n"
        "    told = answer.choices[0].logprobs\n"
        "    best: float = told.content[0].top_logprobs[0].logprob if told else 0.0\n"
        "    tools = [{'type': 'function', 'function': {'name': 'f'}}]\n"
        "    node.chat('m', 'x', tools=tools, enable_thinking=False, chat_template_kwargs={'a': 1}, chat_template='t')\n"
        "    layers: int = node.models()[0].held[0].end\n"
    )
    package = Path(swarmllm.__file__).parent
    run("mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(user), cwd=tmp_path)
    run("mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(package), cwd=tmp_path)
