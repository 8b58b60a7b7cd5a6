"""Held-out rows that an earlier version learned from are told, whatever is left of that version."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Incumbent, WarmStartVersion
from finetune_runner.context import StageContext
from finetune_runner.data.prepared import load_split
from finetune_runner.errors import StageError
from finetune_runner.stages import prepare
from finetune_runner.storage import join
from tests.runner.preparing import run, said
from tests.runner.stores import PrepareWorld, exchange, varied


def publish(context: StageContext, version: str = "v1", run_uri: str = "") -> str:
    """The one part of a version that the next run's prepare reads; its URI."""
    manifest = {"run": {"uri": run_uri or context.task.run_uri}}
    uri = join(context.task.adapter_uri, "versions", version)
    context.storage.write_bytes(join(uri, "manifest.json"), json.dumps(manifest).encode())
    return uri


def next_run(world: PrepareWorld, data: dict[str, Any], **compared: Incumbent | WarmStartVersion) -> list[str]:
    """What prepare of run 2 says of the check seenBefore."""
    task = world.task(data)
    context = world.open(task.model_copy(update={"job": task.job.model_copy(update={"run": 2}), **compared}))
    return [finding.message for finding in prepare.run(context)[1] if finding.check == "seenBefore"]


def test_a_test_that_an_earlier_version_learned_is_told(world: PrepareWorld) -> None:
    rows = varied(160)
    same = {"train": [{"source": world.write("a.jsonl", rows)}]}
    *_, first = run(world, same)
    publish(first)
    assert next_run(world, same) == [], "the same split: test was never learned"
    learned = load_split(first, "train")[:2]
    asked = [exchange(row.prompt[0]["content"].upper(), "another answer") for row in learned]
    test = {"source": world.write("test.jsonl", [*asked, *varied(50, 5000)])}
    moved = {"train": [{"source": world.write("b.jsonl", varied(160, 9000))}], "test": test}
    (message,) = next_run(world, moved)
    assert "v1 was trained on 2 rows that now judge (test): test row " in message
    with pytest.raises(StageError, match="v1 was trained on 2 rows") as caught:
        next_run(world, {**moved, "checks": {"seenBefore": "fail"}})
    assert caught.value.exit_code == ExitCode.INVALID_DATA
    assert next_run(world, {**moved, "checks": {"seenBefore": "ignore"}}) == []
    first.storage.write_bytes(join(first.task.run_uri, "prepare/train.jsonl.gz"), b"damaged")
    assert "v1" in next_run(world, moved)[0]
    first.storage.delete(join(first.task.run_uri, "prepare/train.jsonl.gz"))
    (message,) = next_run(world, moved)
    assert "what v1 was trained on is not in storage any more" in message


def knows_test(world: PrepareWorld) -> tuple[StageContext, dict[str, Any]]:
    """A finished run, and data whose test has two rows of what that run learned."""
    *_, first = run(world, {"train": [{"source": world.write("a.jsonl", varied(160))}]})
    asked = [exchange(row.prompt[0]["content"], "answer") for row in load_split(first, "train")[:2]]
    test = {"source": world.write("test.jsonl", [*asked, *varied(50, 5000)])}
    return first, {"train": [{"source": world.write("b.jsonl", varied(160, 9000))}], "test": test}


def test_what_the_released_version_and_the_warm_start_learned_is_told_too(world: PrepareWorld) -> None:
    first, moved = knows_test(world)
    old = publish(first)
    other_run = join(first.task.adapter_uri, "runs/other")
    first.storage.write_bytes(join(other_run, "prepare/train.jsonl.gz"), gzip.compress(b""))
    for number in (2, 3, 4):
        publish(first, f"v{number}", other_run)
    assert next_run(world, moved) == [], "v1 is none of the newest three"
    (message,) = next_run(world, moved, incumbent=Incumbent(version="v1", uri=old))
    assert message.startswith("v1 was trained on 2 rows")
    newest = Incumbent(version="v4", uri=old.replace("v1", "v4"))
    assert next_run(world, moved, incumbent=newest) == []
    # The warm start may be a version of another adapter.
    elsewhere = join(first.task.storage.uri, "team/other/versions/v9")
    manifest = {"run": {"uri": first.task.run_uri}}
    first.storage.write_bytes(join(elsewhere, "manifest.json"), json.dumps(manifest).encode())
    start = WarmStartVersion(version="other-v9", uri=elsewhere, digest="0" * 64, base_digest="0" * 64)
    (message,) = next_run(world, moved, warm_start=start)
    assert message.startswith("other-v9 was trained on 2 rows")
    first.storage.delete(join(elsewhere, "manifest.json"))
    (message,) = next_run(world, moved, warm_start=start)
    assert "what other-v9 was trained on is not in storage any more" in message


WHOLE = gzip.compress(b'{"id": "1"}\n' * 50)


DAMAGES = {
    "no gzip": b"damaged",
    "breaks off": WHOLE[:-9],
    "no deflate stream": WHOLE[:10] + b"\xff" * 20 + WHOLE[30:],
    "no JSON": gzip.compress(b"{"),
    "no row": gzip.compress(b"[1]\n"),
    "no message": gzip.compress(b'{"id": "1", "messages": [], "weight": 1, "group": ""}\n'),
    "messages of another kind": gzip.compress(b'{"id": "1", "messages": [1, 2], "weight": 1, "group": ""}\n'),
}


def test_damaged_data_of_an_old_version_do_not_end_the_new_run(world: PrepareWorld) -> None:
    first, moved = knows_test(world)
    publish(first)
    task = world.task(moved)
    context = world.open(task.model_copy(update={"job": task.job.model_copy(update={"run": 2})}))
    for case, content in DAMAGES.items():
        first.storage.write_bytes(join(first.task.run_uri, "prepare/train.jsonl.gz"), content)
        found = said(prepare.run(context)[1], "seenBefore")
        assert found.severity == "warning", case
        assert "what v1 was trained on is not in storage any more, or damaged" in found.message, case
