"""Errors: one class for each kind, under one base."""

import pickle
from pathlib import Path

import pytest

import swarmllm


def kinds() -> list[type[swarmllm.Error]]:
    named = [getattr(swarmllm, name) for name in dir(swarmllm) if name.endswith("Error") and name != "Error"]
    return [item for item in named if isinstance(item, type) and issubclass(item, swarmllm.Error)]


def test_every_kind_has_a_class_with_its_code_and_name() -> None:
    assert len(kinds()) > 30
    assert len({kind.code for kind in kinds()}) == len(kinds())
    for kind in kinds():
        assert kind.__name__ == f"{kind.kind}Error"
        assert kind.__module__ == "swarmllm"


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(swarmllm.ModelNotFoundError("gone")))
    assert isinstance(error, swarmllm.ModelNotFoundError)
    assert (str(error), error.partial) == ("gone", None)


def test_an_unknown_model_has_its_own_error(node: swarmllm.Node) -> None:
    with pytest.raises(swarmllm.ModelNotFoundError) as caught:
        node.chat("no-such-model", "hello")
    assert (caught.value.code, caught.value.kind) == (200, "ModelNotFound")
    assert "no-such-model" in str(caught.value)
    with pytest.raises(swarmllm.ModelNotFoundError):
        node.plan("no-such-model")


def test_an_unknown_model_cannot_be_pinned(node: swarmllm.Node) -> None:
    for call in [node.pin, node.unpin, node.remove]:
        with pytest.raises(swarmllm.ModelNotFoundError):
            call("no-such-model")
    assert node.make_room(1) == []


def test_a_bad_gguf_is_refused_and_leaves_nothing_behind(node: swarmllm.Node, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF\x03this is not a model at all, whatever its first bytes say")
    with pytest.raises(swarmllm.BadGgufError):
        node.import_model(bad)
    assert node.models() == []


def test_a_model_that_cannot_run_here_needs_anyway(
    node: swarmllm.Node, gguf: str, tmp_path: Path
) -> None:
    whole = Path(gguf).read_bytes()
    unknown = tmp_path / "zebra.gguf"
    unknown.write_bytes(whole[:65536].replace(b"llama", b"zebra") + whole[65536:])
    with pytest.raises(swarmllm.UnsupportedArchitectureError) as caught:
        node.import_model(unknown)
    assert node.models() == []
    report = caught.value.report
    assert isinstance(report, swarmllm.ImportReport)
    assert report == node.examine(unknown)
    assert (report.architecture, report.refuses) == ("zebra", True)
    first = report.findings[0]
    assert (first.subject, first.engine is None, first.kind) == ("engine", False, "UnsupportedArchitecture")
    kept = node.import_model(unknown, name="kept", anyway=True)
    assert kept.names[0] == "kept" and any("zebra" in warning for warning in kept.warnings)
    (listed,) = node.models()
    assert not listed.ready and listed.findings[0].refuses and "zebra" in listed.warnings[0]


def test_a_pinned_model_is_not_removed(node: swarmllm.Node, gguf: str) -> None:
    model = node.import_model(gguf, name="chat")
    node.pin("chat")
    with pytest.raises(swarmllm.InvalidArgumentError, match="pinned"):
        node.remove("chat")
    node.unpin("chat")
    assert node.remove("CHAT") == model.size
    assert node.models() == []


def test_only_move_alias_takes_an_alias(node: swarmllm.Node, gguf: str, tmp_path: Path) -> None:
    model = node.import_model(gguf, name="chat")
    whole = Path(gguf).read_bytes()
    other = tmp_path / "zebra.gguf"
    other.write_bytes(whole[:65536].replace(b"llama", b"zebra") + whole[65536:])
    with pytest.raises(swarmllm.AliasTakenError) as caught:
        node.import_model(other, name="Chat", anyway=True)
    assert model.id[:8] in str(caught.value)
    zebra = node.import_model(other, anyway=True)
    with pytest.raises(swarmllm.AliasTakenError):
        node.add_alias(zebra.id, "chat")
    assert node.move_alias(zebra.id, "chat").aliases == ["chat"]
    assert node.add_alias(model.id, "mine").aliases == ["mine"]
    node.remove_alias("chat")
    with pytest.raises(swarmllm.ModelNotFoundError):
        node.remove_alias("chat")


def test_a_missing_file_is_an_io_error(node: swarmllm.Node, tmp_path: Path) -> None:
    with pytest.raises(swarmllm.IoError):
        node.import_model(tmp_path / "nothing.gguf")


def test_an_invalid_web_source_is_refused(node: swarmllm.Node) -> None:
    for address in ["ftp://example.org/a.gguf", "https://user:word@example.org/a.gguf", "hf:owner/repo"]:
        with pytest.raises(swarmllm.InvalidArgumentError):
            node.import_url(address)
    with pytest.raises(swarmllm.ModelNotFoundError):
        node.pull_url("no-such-model", "https://example.org/a.gguf")


def test_two_nodes_on_one_data_directory_are_refused(node: swarmllm.Node) -> None:
    with pytest.raises(swarmllm.DataDirBusyError):
        swarmllm.Node(node.status().data_dir, "offline").start()


def test_an_invalid_address_is_refused(node: swarmllm.Node) -> None:
    with pytest.raises(swarmllm.Error):
        node.connect("nonsense")


def test_arguments_of_a_wrong_type_are_refused(node: swarmllm.Node) -> None:
    with pytest.raises(TypeError):
        node.chat("m", "x", max_token=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        node.chat("m", "x", max_tokens="three")  # type: ignore[call-overload]
    with pytest.raises(swarmllm.InvalidArgumentError):
        node.pull("m", "half")
    with pytest.raises(swarmllm.InvalidArgumentError):
        swarmllm.Node(preset="everywhere").start()  # type: ignore[arg-type]


def test_an_error_names_field_wanted_and_found_value(node: swarmllm.Node) -> None:
    whole = "must be a whole number from 0 to 4294967295, not"
    tokens = "must be a whole number from 1 to 4294967295, not"
    user = [{"role": "user", "content": "x"}]
    table: list[tuple[type[Exception], dict[str, object], str]] = [
        (TypeError, {"max_tokens": "three"}, f"`max_tokens`: {tokens} 'three'"),
        (TypeError, {"temperature": "hot"}, "`temperature`: must be a number, not 'hot'"),
        (TypeError, {"stop": 3}, "`stop`: must be a list of texts, not 3"),
        (TypeError, {"logit_bias": 3}, "`logit_bias`: must be numbers by token, not 3"),
        (TypeError, {"exact": "no"}, "`exact`: must be True or False, not 'no'"),
        (TypeError, {"chat_template": 3}, "`chat_template`: must be text, not 3"),
        (swarmllm.InvalidArgumentError, {"max_tokens": -1}, f"`max_tokens`: {tokens} -1"),
        (swarmllm.InvalidArgumentError, {"max_tokens": 0}, f"`max_tokens`: {tokens} 0"),
        (swarmllm.InvalidArgumentError, {"logprobs": 21}, "`logprobs`: must be a whole number from 0 to 20, not 21"),
        (swarmllm.InvalidArgumentError, {"top_k": 5_000_000_000}, f"`top_k`: {whole} 5000000000"),
        (swarmllm.InvalidArgumentError, {"wire": "f64"}, '`wire`: must be one of `f32`, `bf16`, `int8`, not "f64"'),
        (swarmllm.InvalidArgumentError, {"constraint": {"regex": 3}}, "`constraint.regex`: must be text, not 3"),
        (swarmllm.InvalidArgumentError, {"tools": "f"}, '`tools`: must be a list, not "f"'),
        (swarmllm.InvalidArgumentError, {"chat_template_kwargs": [1]}, "`chat_template_kwargs`: must be an object, not a list"),
        (swarmllm.InvalidArgumentError, {"messages": [{"role": "user"}]}, "`messages[0].content`: is missing"),
        (swarmllm.InvalidArgumentError, {"messages": [3]}, "`messages[0]`: must be an object, not 3"),
    ]
    for kind, options, sentence in table:
        given: dict[str, object] = {"messages": user, **options}
        with pytest.raises(kind) as caught:
            node.chat("m", **given)  # type: ignore[call-overload]
        assert str(caught.value) == sentence
    with pytest.raises(TypeError, match="there is no option 'max_token'; options are max_tokens, "):
        node.chat("m", user, max_token=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="`threads`: must be a whole number from 1 to 4294967295, not 'two'"):
        swarmllm.Node(preset="offline", threads="two").start()  # type: ignore[arg-type]
    with pytest.raises(TypeError) as caught_part:
        node.pull("m", 3)  # type: ignore[arg-type]
    assert str(caught_part.value) == '`part`: must be "all", "coordinator", (start, end) or (start, end, head), not 3'


def test_parts_outside_the_model_are_refused(node: swarmllm.Node, gguf: str) -> None:
    for parts in [[(5, 2)], [(0, 9999)], [(0, 1, True), (3, 3, False)], []]:
        for call in [node.import_model, node.examine]:
            with pytest.raises(swarmllm.InvalidArgumentError) as caught:
                call(gguf, parts=parts)
            assert "the model has" in str(caught.value) or not parts
    assert node.models() == []
    held = node.import_model(gguf, parts=[(0, 1)]).held
    assert [(layers.start, layers.end) for layers in held] == [(0, 1)]


def test_aliases_like_ids_or_invisible_are_refused(node: swarmllm.Node, gguf: str) -> None:
    model = node.import_model(gguf)
    for alias in ["deadbeef", "a\u202eb", "a\u200bb"]:
        for call in [node.add_alias, node.move_alias]:
            with pytest.raises(swarmllm.InvalidArgumentError):
                call(model.id, alias)
    assert node.models()[0].aliases == []
