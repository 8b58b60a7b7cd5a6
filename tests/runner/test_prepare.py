"""Stage prepare as a whole: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.prepared import load_manifest, load_split
from finetune_runner.errors import StageError
from finetune_runner.stages import prepare
from finetune_runner.storage import join
from tests.cluster.harness.s3 import S3Server
from tests.runner.preparing import CLASSES, JSON_TASK, refused, run, said, splits_of
from tests.runner.stores import PrepareWorld, exchange, leaking, s3_storage, varied


def test_a_dataset_becomes_three_verified_splits(world: PrepareWorld) -> None:
    rows = varied(300)
    result, findings, context = run(world, {"train": [{"source": world.write("a.jsonl", rows)}]}, evaluation=CLASSES)
    splits = splits_of(context)
    assert sum(len(split) for split in splits.values()) == 300
    assert (result.rows.train, result.rows.validation, result.rows.test) == tuple(
        len(splits[name]) for name in ("train", "validation", "test")
    )
    assert 60 <= result.rows.test <= 120
    assert {(row.messages[0]["content"], row.answer) for split in splits.values() for row in split} == {
        (row["prompt"], row["completion"]) for row in rows
    }
    assert result.detected_format == "promptCompletion"
    assert result.model.architecture == "LlamaForCausalLM"
    assert result.model.parameters > 50_000
    assert result.train_tokens > 10 * result.rows.train
    assert 10 < result.lengths.p50 <= result.lengths.p95 <= result.lengths.maximum
    assert result.revision == result.model_digest
    assert said(findings, "sizes").severity == "warning"
    lineage = json.loads(context.storage.read_bytes(join(context.task.run_uri, "prepare/lineage.json")))
    assert lineage["sources"][0]["rows"] == 300
    assert len(lineage["sources"][0]["files"][0]["sha256"]) == 64
    assert lineage["versions"]["datasketch"]


def test_train_pods_need_not_read_test(world: PrepareWorld) -> None:
    *_, context = run(world, {"train": [{"source": world.write("a.jsonl", varied(200))}]})
    below = [item.uri.removeprefix(context.task.run_uri) for item in context.storage.list(context.task.run_uri + "/")]
    assert sorted(below) == [
        "/prepare/data-report.html",
        "/prepare/data-report.json",
        "/prepare/lineage.json",
        "/prepare/manifest.json",
        "/prepare/row-hashes.dat",
        "/prepare/train.jsonl.gz",
        "/prepare/validation.jsonl.gz",
        "/test/test.jsonl.gz",
    ]
    test_ids = {row.id for row in load_split(context, "test")}
    assert not test_ids & {row.id for row in [*load_split(context, "train"), *load_split(context, "validation")]}


def test_the_same_data_in_another_order_give_the_same_digest(tmp_path: Path, tiny_model: Path) -> None:
    digests = set()
    for name, rows in (("one", varied(150)), ("two", varied(150)[::-1])):
        (tmp_path / name).mkdir()
        world = PrepareWorld(tmp_path / name, f"file://{tiny_model}")
        result, *_ = run(world, {"train": [{"source": world.write("a.jsonl", rows)}]})
        digests.add((result.data_digest, result.test_digest))
    assert len(digests) == 1


def test_a_changed_split_is_noticed(world: PrepareWorld) -> None:
    *_, context = run(world, {"train": [{"source": world.write("a.jsonl", varied(150))}]})
    context.storage.write_bytes(join(context.task.run_uri, "prepare/train.jsonl.gz"), gzip.compress(b""))
    with pytest.raises(StageError, match=r"prepare/train\.jsonl\.gz of run 1 was changed") as caught:
        load_split(context, "train")
    assert caught.value.exit_code == ExitCode.INVALID_DATA
    assert load_split(context, "test")
    assert load_split(context, "replay") == []


def test_explicit_sources_are_kept_apart_and_what_leaks_is_dropped_from_train(world: PrepareWorld) -> None:
    rows = varied(200)
    test, general = varied(40, 1000), varied(60, 2000)
    near = exchange(test[1]["prompt"].upper() + "!!", "billing")
    result, findings, context = run(
        world,
        {
            "train": [{"source": world.write("train.jsonl", [*rows, test[0], near])}],
            "test": {"source": world.write("test.jsonl", [*test, test[2]])},
            "replay": {"source": world.write("replay.jsonl", [*general, *test[:5]]), "fraction": 0.2},
        },
        evaluation={"outOfDomain": {"source": world.write("general.jsonl", general[:10])}},
    )
    splits = splits_of(context)
    assert len(splits["test"]) == 40, "held-out rows count once and stay"
    assert len(splits["out_of_domain"]) == 10
    assert len(splits["train"]) + len(splits["validation"]) == 200
    held_out = [row for name in ("test", "validation", "out_of_domain") for row in splits[name]]
    assert leaking([row for name in ("train", "replay") for row in splits[name]], held_out) == []
    assert result.rows.replay == pytest.approx(0.25 * result.rows.train, abs=1)
    assert result.rows.dropped == 1 + 2 + 15
    assert said(findings, "leaks").rows == 2


def test_a_source_with_too_few_replay_rows_is_said(world: PrepareWorld) -> None:
    data = {
        "train": [{"source": world.write("a.jsonl", varied(200))}],
        "replay": {"source": world.write("b.jsonl", varied(5, 5000)), "fraction": 0.5},
    }
    result, findings, _ = run(world, data)
    assert result.rows.replay == 5
    assert "replay is 4 % of the mix" in said(findings, "replay").message


def test_weights_repeat_and_thin_out_train_rows_only(world: PrepareWorld) -> None:
    data = {
        "train": [
            {"source": world.write("a.jsonl", varied(150)), "weight": 3.0},
            {"source": world.write("b.jsonl", varied(150, 1000)), "weight": 0.5},
        ]
    }
    _, _, context = run(world, data)
    numbers = [int(row.prompt[0]["content"].split()[1].rstrip(":")) for row in load_split(context, "train")]
    first = [number for number in numbers if number < 1000]
    assert len(first) == 3 * len(set(first))
    second = [number for number in numbers if number >= 1000]
    assert len(second) == len(set(second))
    assert len(second) == pytest.approx(len(set(first)) / 2, abs=15)
    held_out = [row.id for name in ("validation", "test") for row in load_split(context, name)]  # type: ignore[arg-type]
    assert len(held_out) == len(set(held_out))


def test_groups_stay_together(world: PrepareWorld) -> None:
    rows: list[dict[str, Any]] = [{**row, "customer": {"id": number % 30}} for number, row in enumerate(varied(300))]
    _, _, context = run(world, {"train": [{"source": world.write("a.jsonl", rows)}], "groupBy": "$.customer.id"})
    groups = [{row.group for row in split} for split in splits_of(context).values() if split]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 30


def test_what_rows_are_grouped_by_is_kept_as_a_hash_only(world: PrepareWorld) -> None:
    rows = [{**row, "email": f"jane{number % 30}@example.com"} for number, row in enumerate(varied(120))]
    rows[0]["email"] = rows[1]["email"] = "\ud800"
    data = {"train": [{"source": world.write("a.jsonl", rows)}], "groupBy": "$.email", "checks": {"pii": "redact"}}
    _, _, context = run(world, data)
    groups = {row.group for split in splits_of(context).values() for row in split}
    assert hashlib.sha256(b"jane2@example.com").hexdigest()[:16] in groups
    assert len(groups) == 31
    for item in context.storage.list(context.task.adapter_uri + "/"):
        content = context.storage.read_bytes(item.uri)
        assert b"example.com" not in (gzip.decompress(content) if item.uri.endswith(".gz") else content), item.uri


@pytest.mark.parametrize(
    ("policy", "kept", "severity"), [("drop", 200, "info"), ("warn", 203, "warning"), ("fail", None, None)]
)
def test_duplicates_follow_the_policy(world: PrepareWorld, policy: str, kept: int | None, severity: str | None) -> None:
    rows = varied(200)
    source = world.write("a.jsonl", [*rows, *rows[:3]])
    data = {"train": [{"source": source}], "checks": {"duplicates": policy}}
    if kept is None:
        error = refused(world, data)
        assert error.exit_code == ExitCode.INVALID_DATA
        assert "data.train: 3 exact duplicates: a.jsonl line 201 (= a.jsonl line 1)" in error.message
        return
    result, findings, _ = run(world, data)
    assert result.rows.train + result.rows.validation + result.rows.test == kept
    assert said(findings, "duplicates").severity == severity


def with_answers(rows: list[dict[str, str]], answer: Callable[[dict[str, str]], str]) -> list[dict[str, str]]:
    return [exchange(row["prompt"], answer(row)) for row in rows]


def as_json(row: dict[str, str]) -> str:
    return json.dumps({"category": row["completion"]})


def test_what_the_checks_see_becomes_a_finding(world: PrepareWorld) -> None:
    rows = with_answers(varied(200), as_json)
    rows.append(exchange(rows[0]["prompt"].lower(), '{"category": "access"}'))
    result, findings, _ = run(
        world,
        {"train": [{"source": world.write("a.jsonl", rows)}]},
        evaluation={**JSON_TASK, "metrics": [{"name": "f1"}, {"name": "schemaValid"}]},
        training={"maxLength": 40},
    )
    conflict = said(findings, "conflictingAnswers")
    assert "a.jsonl line 1 against a.jsonl line 201" in conflict.message
    assert conflict.rows == 2
    assert "classes: " in said(findings, "balance").message
    assert said(findings, "lengths").rows > 0
    assert result.lengths.over_maximum > 0
    assert result.train_tokens <= 40 * result.rows.train
    assert [finding.severity for finding in findings] == sorted(
        (finding.severity for finding in findings), key=["error", "warning", "info"].index
    )


def test_refusals_are_reported(world: PrepareWorld) -> None:
    rows = [*varied(150), exchange("Tell me a secret thing", "I'm sorry, but I can't help with that.")]
    _, findings, _ = run(world, {"train": [{"source": world.write("a.jsonl", rows)}]})
    assert "1 answer refuses: a.jsonl line 151" in said(findings, "refusals").message


@pytest.mark.parametrize(
    ("rows", "spec", "code", "says"),
    [
        pytest.param(varied(3), {}, ExitCode.INVALID_DATA, "3 usable rows: 1 train, 1 validation, 1 test", id="3 rows"),
        pytest.param(varied(1), {}, ExitCode.INVALID_DATA, "1 usable row: ", id="1 row"),
        pytest.param(
            varied(60), {}, ExitCode.INVALID_DATA, "data.checks.minimumRows asks for 50 train rows", id="too few rows"
        ),
        pytest.param(
            with_answers(varied(200), lambda _: "billing"),
            {"evaluation": CLASSES},
            ExitCode.INVALID_DATA,
            "all 200 rows have one class (class of a.jsonl line 1): there is nothing to tell apart",
            id="one class",
        ),
        pytest.param(
            [*with_answers(varied(199), as_json), exchange("odd one", '{"category": "other"}')],
            {"evaluation": JSON_TASK},
            ExitCode.INVALID_DATA,
            "a.jsonl line 200: the answer does not satisfy the schema at $.category: enum",
            id="answer against the schema",
        ),
        pytest.param(
            varied(200),
            {"evaluation": JSON_TASK},
            ExitCode.INVALID_DATA,
            "a.jsonl line 1: the answer is not JSON",
            id="not JSON",
        ),
        pytest.param(
            with_answers(varied(200), lambda _: "{}"),
            {"evaluation": {"task": {"type": "classification", "labelPath": "$.category"}}},
            ExitCode.INVALID_DATA,
            "the answer has nothing at labelPath $.category",
            id="no label",
        ),
        pytest.param(
            varied(200),
            {"evaluation": {"task": {"schema": {"type": "nonsense"}}}},
            ExitCode.INVALID_SPEC,
            "evaluation.task.schema is not a JSON Schema",
            id="bad schema",
        ),
        pytest.param(
            varied(200),
            {"evaluation": {"task": {"schema": {"$ref": "file:///a.json"}}}, "data": {"checks": {"answers": "ignore"}}},
            ExitCode.INVALID_SPEC,
            "evaluation.task.schema: the reference file:///a.json leads to no schema",
            id="schema elsewhere",
        ),
        pytest.param(
            [exchange("word " * 3000 + str(n), "x") for n in range(200)],
            {"training": {"maxLength": 4096}},
            ExitCode.INVALID_SPEC,
            "the model's context 512, training.maxLength 4096",
            id="longer than the context",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(
    world: PrepareWorld, rows: list[dict[str, str]], spec: dict[str, Any], code: ExitCode, says: str
) -> None:
    data = {"train": [{"source": world.write("a.jsonl", rows)}], **spec.get("data", {})}
    error = refused(world, data, **{key: value for key, value in spec.items() if key != "data"})
    assert error.exit_code == code
    assert says in error.message


def test_one_class_without_f1_is_a_warning(world: PrepareWorld) -> None:
    rows = with_answers(varied(200), lambda _: "billing")
    _, findings, _ = run(
        world,
        {"train": [{"source": world.write("a.jsonl", rows)}]},
        evaluation={"task": {"type": "classification"}, "metrics": [{"name": "exactMatch"}]},
    )
    assert said(findings, "balance").severity == "warning"


def test_a_model_without_safetensors_is_refused(world: PrepareWorld, tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    world.model = f"file://{tmp_path}/pickled"
    error = refused(world, {"train": [{"source": world.write("a.jsonl", varied(200))}]})
    assert error.exit_code == ExitCode.MODEL_UNUSABLE
    assert "no *.safetensors (only pytorch_model.bin)" in error.message


def test_on_s3_with_sources_and_model_there(
    world: PrepareWorld, s3: S3Server, tmp_path: Path, tiny_model: Path
) -> None:
    world.storage = s3_storage(s3, tmp_path, "/root")
    bucket = s3.make_bucket()
    client = s3.client()
    for item in tiny_model.iterdir():
        client.upload_file(str(item), bucket, f"models/tiny/{item.name}")
    for number in range(2):
        body = "".join(json.dumps(row) + "\n" for row in varied(100, 1000 * number))
        client.put_object(Bucket=bucket, Key=f"data/part-{number}.jsonl", Body=body.encode())
    world.model = f"s3://{bucket}/models/tiny"
    result, _, context = run(world, {"train": [{"source": f"s3://{bucket}/data"}]})
    assert result.rows.train + result.rows.validation + result.rows.test == 200
    assert load_manifest(context)["dataDigest"] == result.data_digest
    assert len(load_split(context, "train")) == result.rows.train


@pytest.mark.parametrize(
    ("source", "says"), [("s3://{}/nothing.jsonl", "no such object"), ("s3://no-such-bucket/a.jsonl", "no-such-bucket")]
)
def test_a_missing_s3_source_names_the_field(
    world: PrepareWorld, s3: S3Server, tmp_path: Path, source: str, says: str
) -> None:
    world.storage = s3_storage(s3, tmp_path)
    error = refused(world, {"train": [{"source": source.format(s3.make_bucket())}]})
    assert error.exit_code == ExitCode.SOURCE_NOT_FOUND
    assert error.message.startswith("data.train[0]: ")
    assert says in error.message


def test_a_stop_ends_prepare_with_nothing_committed(world: PrepareWorld) -> None:
    context = world.open(world.task({"train": [{"source": world.write("a.jsonl", varied(200))}]}))
    context.stop.set()
    with pytest.raises(StageError) as caught:
        prepare.run(context)
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert not context.storage.exists(join(context.task.run_uri, "prepare/manifest.json"))


def refused_after(world: PrepareWorld, data: dict[str, Any], **spec: Any) -> StageError:
    """The error of a run in a store that already holds another."""
    with pytest.raises(StageError) as caught:
        prepare.run(world.open(world.task(data, **spec)))
    return caught.value


def test_the_spec_decides_what_is_learned(world: PrepareWorld) -> None:
    talk = [
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
        for r in varied(120)
    ]
    source = {
        "source": world.write("a.jsonl", talk),
        "provenance": {
            "origin": "tickets",
            "licence": "CC-BY-4.0",
            "collectedAt": "2025-11",
            "contact": "a@example.com",
        },
    }
    digests = set()
    for change in ({}, {"loss": "completion"}, {"systemPrompt": "Be kind"}):
        result, findings, context = run(world, {"train": [source], **change})
        digests.add(result.data_digest)
    assert len(digests) == 3, "each is another training"
    assert {row.messages[0]["content"] for split in splits_of(context).values() for row in split} == {"Be kind"}
    assert "data.systemPrompt was added to 120 of 120 rows" in said(findings, "format").message
    lineage = json.loads(context.storage.read_bytes(join(context.task.run_uri, "prepare/lineage.json")))
    assert lineage["sources"][0]["provenance"] == source["provenance"]
    assert lineage["sources"][0]["systemPromptAdded"] == 120
    result, *_ = run(world, {"train": [source]}, model={"source": world.model, "chatTemplate": "plain"})
    assert result.data_digest not in digests


def test_a_preference_set_is_refused_by_sft_with_the_fix(world: PrepareWorld) -> None:
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "no"} for r in varied(80)]
    error = refused(world, {"train": [{"source": world.write("a.jsonl", pairs)}]})
    assert error.exit_code == ExitCode.INVALID_DATA
    assert "method.objective sft does not learn from rows with a better and a worse answer: 80 rows" in error.message
    assert "method.objective: dpo" in error.hint


def test_a_test_split_off_judged_answers_holds_only_wanted_ones(world: PrepareWorld) -> None:
    judged = [{**row, "label": number % 2 == 0} for number, row in enumerate(varied(300))]
    data = {"train": [{"source": world.write("a.jsonl", judged)}]}
    result, findings, context = run(world, data, method={"objective": "kto"})
    splits = splits_of(context)
    assert {row.label for row in splits["test"]} == {True}
    assert {row.label for row in splits["train"]} == {True, False}
    assert {row.label for row in splits["validation"]} == {True, False}
    assert said(findings, "unwanted").rows == result.rows.dropped > 0
    assert len(splits["test"]) + result.rows.dropped + len(splits["train"]) + len(splits["validation"]) == 300


def test_a_built_in_template_that_the_tokenizer_cannot_spell_is_refused(world: PrepareWorld) -> None:
    data = {"train": [{"source": world.write("a.jsonl", varied(80))}]}
    error = refused(world, data, model={"source": world.model, "chatTemplate": "llama3"})
    assert error.exit_code == ExitCode.INVALID_SPEC
    assert "no token of this model's tokenizer" in error.message


def test_too_long_examples_are_dropped_where_the_spec_says_so(world: PrepareWorld) -> None:
    rows = [*varied(120), exchange("x " * 900, "billing"), exchange("short", "y " * 900)]
    source = {"source": world.write("a.jsonl", rows)}
    kept, findings, _ = run(world, {"train": [source]}, training={"maxLength": 256})
    assert kept.rows.dropped == 1
    assert any("1 row whose answer does not fit into training.maxLength 256, dropped" in f.message for f in findings)
    dropping, *_ = run(world, {"train": [source], "overlong": "drop"}, training={"maxLength": 256})
    assert dropping.rows.dropped == 2
    error = refused_after(world, {"train": [source], "overlong": "fail"}, training={"maxLength": 256})
    assert "a.jsonl line 12" in error.message
