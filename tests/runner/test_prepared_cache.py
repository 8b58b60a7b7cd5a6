"""Prepared data taken over by content."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import finetune_api
import finetune_runner
from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.data import prepared_cache
from finetune_runner.data.prepared import load_manifest, load_split
from finetune_runner.errors import StageError
from finetune_runner.stages import prepare
from finetune_runner.storage import join
from tests.runner.preparing import document, numbered_run
from tests.runner.stores import PrepareWorld, varied


def cache_files(context: StageContext, below: str = "") -> list[str]:
    return [item.uri for item in context.storage.list(join(context.task.adapter_uri, "cache", below) + "/")]


def test_the_same_data_are_prepared_once(world: PrepareWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*varied(200), varied(1)[0]]
    data = {"train": [{"source": world.write("a.jsonl", rows)}]}
    first, findings, before = numbered_run(world, data)
    assert not first.cached
    monkeypatch.setattr(prepare, "RowStore", None)  # whatever reads rows again fails
    again, findings_again, context = numbered_run(world, data, 2, training={"learningRate": 1e-3})
    assert again.cached
    assert again.model_copy(update={"cached": False, "report_uri": first.report_uri}) == first
    assert again.report_uri == join(context.task.run_uri, "prepare/data-report.html")
    assert findings_again == findings
    for name in ("train", "validation", "test"):
        assert load_split(context, name) == load_split(before, name)  # type: ignore[arg-type]
    assert load_manifest(context)["dataDigest"] == first.data_digest
    lineage = document(context, "lineage.json")
    assert lineage["preparedBy"] == before.task.run_uri
    assert lineage["job"]["run"] == 2
    assert {**lineage, "job": 0} == {**document(before, "lineage.json"), "job": 0}


CHANGES: list[tuple[str, Callable[[PrepareWorld, dict[str, Any], dict[str, Any]], None]]] = [
    ("one more row", lambda world, data, _: world.write("a.jsonl", varied(201)) and None),
    ("another seed", lambda _, __, spec: spec.update(training={"seed": 7})),
    ("another maxLength", lambda _, __, spec: spec.update(training={"maxLength": 256})),
    ("another share of test", lambda _, data, __: data.update(test={"fraction": 0.2})),
    ("another baseline prompt", lambda _, __, spec: spec.update(evaluation={"baselinePrompt": "Say billing."})),
    ("another task", lambda _, __, spec: spec.update(evaluation={"task": {"type": "classification"}})),
]


@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_whatever_changes_the_data_prepares_them_again(
    world: PrepareWorld, change: Callable[[PrepareWorld, dict[str, Any], dict[str, Any]], None]
) -> None:
    data: dict[str, Any] = {"train": [{"source": world.write("a.jsonl", varied(200))}]}
    spec: dict[str, Any] = {}
    numbered_run(world, data)
    change(world, data, spec)
    result, *_ = numbered_run(world, data, 2, **spec)
    assert not result.cached


@pytest.mark.parametrize("package", [finetune_api, finetune_runner], ids=lambda package: package.__name__)
def test_another_version_of_the_program_prepares_again(
    package: ModuleType, world: PrepareWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A default, a mode or the words of a finding may be the contract's (finetune_api) as well as the runner's."""
    data = {"train": [{"source": world.write("a.jsonl", varied(200))}]}
    numbered_run(world, data)
    other = tmp_path / "other"
    shutil.copytree(Path(str(package.__file__)).parent, other, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(package, "__file__", str(other / "__init__.py"))
    try:
        prepared_cache._code_digest.cache_clear()
        same, *_ = numbered_run(world, data, 2)
        assert same.cached
        with (other / "__init__.py").open("a") as source:
            source.write("# changed\n")
        prepared_cache._code_digest.cache_clear()
        result, *_ = numbered_run(world, data, 3)
        assert not result.cached
    finally:
        prepared_cache._code_digest.cache_clear()


def test_another_tokenizer_counts_again_and_another_gate_does_not(
    world: PrepareWorld, tiny_model: Path, tmp_path: Path
) -> None:
    data = {"train": [{"source": world.write("a.jsonl", varied(200))}]}
    judged: dict[str, Any] = {"metrics": [{"name": "exactMatch"}]}
    numbered_run(world, data, evaluation=judged)
    judged["gates"] = [{"metric": "exactMatch", "minimum": 0.5}]
    gated, *_ = numbered_run(world, data, 2, evaluation=judged)
    assert gated.cached
    other = tmp_path / "other"
    other.mkdir()
    for item in tiny_model.iterdir():
        (other / item.name).write_bytes(item.read_bytes())
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", "<|end|><|end|>"))
    world.model = f"file://{other}"
    result, *_ = numbered_run(world, data, 3, evaluation=judged)
    assert not result.cached
    assert result.train_tokens > gated.train_tokens


@pytest.mark.parametrize("damage", ["file", "test file", "entry", "lost file"])
def test_a_damaged_cache_is_made_again(world: PrepareWorld, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    data = {"train": [{"source": world.write("a.jsonl", varied(200))}]}
    first, _, context = numbered_run(world, data)
    entry = next(uri for uri in cache_files(context) if uri.endswith(".json"))
    largest = max(cache_files(context, "prepare/files"), key=lambda uri: len(context.storage.read_bytes(uri)))
    if damage == "entry":
        context.storage.write_bytes(entry, b'{"prepared": ')
    elif damage == "lost file":
        context.storage.delete(largest)
    else:
        uri = largest if damage == "file" else cache_files(context, "test")[0]
        context.storage.write_bytes(uri, gzip.compress(b"{}"))
    result, _, context = numbered_run(world, data, 2)
    assert not result.cached
    assert "does not hold and is made again" in caplog.text
    assert result.data_digest == first.data_digest
    third, _, context = numbered_run(world, data, 3)
    assert third.cached
    assert load_split(context, "test")


def test_test_rows_are_cached_apart(world: PrepareWorld) -> None:
    *_, context = numbered_run(world, {"train": [{"source": world.write("a.jsonl", varied(200))}]})
    test = context.storage.read_bytes(join(context.task.run_uri, "test/test.jsonl.gz"))
    assert [context.storage.read_bytes(uri) for uri in cache_files(context, "test")] == [test]
    assert test not in [context.storage.read_bytes(uri) for uri in cache_files(context, "prepare")]


def test_an_older_attempt_commits_and_keeps_nothing(world: PrepareWorld) -> None:
    task = world.task({"train": [{"source": world.write("a.jsonl", varied(200))}]})
    old, new = world.open(task), world.open(task)
    old.fence.claim()
    new.fence.claim()
    with pytest.raises(StageError) as caught:
        prepare.run(old)
    assert caught.value.exit_code == ExitCode.FENCED
    assert not old.storage.exists(join(task.run_uri, "prepare/manifest.json"))
    assert cache_files(old) == []
