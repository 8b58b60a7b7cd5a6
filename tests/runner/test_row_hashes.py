"""Row hashes, and which versions were trained on a row."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_cli.main import main as finetune
from finetune_runner import trained_on
from finetune_runner.context import StageContext
from finetune_runner.data.prepared import ROW_HASHES_PATH, load_split
from finetune_runner.data.row_hashes import ROW_HASHES, adapter_salt, find_hashes, row_hash, write_row_hashes
from finetune_runner.data.rows import make_row
from finetune_runner.errors import StageError
from finetune_runner.storage import join
from tests.cluster.harness.s3 import S3Server
from tests.runner.preparing import numbered_run
from tests.runner.stores import PrepareWorld, exchange, s3_storage, store_of, varied

SECRET = "jane.roe@example.org"


def as_row(prompt: str, answer: str, system: str = "") -> Any:
    start = [{"role": "system", "content": system}] if system else []
    return make_row([*start, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])


texts = st.text(min_size=1, max_size=8)


@given(st.lists(st.tuples(texts, texts), max_size=12), st.lists(st.tuples(texts, texts), max_size=6), st.binary())
def test_a_hash_is_found_if_and_only_if_its_row_is_there(
    tmp_path_factory: pytest.TempPathFactory, there: list[tuple[str, str]], asked: list[tuple[str, str]], salt: bytes
) -> None:
    path = tmp_path_factory.mktemp("hashes") / "hashes"
    with store_of({"train": [as_row(*pair) for pair in there], "test": [as_row("t", "u")]}) as store:
        write_row_hashes(store, salt, path)
    wanted = {row_hash(salt, as_row(*pair, system="other").content_key): pair for pair in [*asked, ("t", "u")]}
    found = [wanted[hashed] for _, hashed in find_hashes(io.BytesIO(path.read_bytes()), wanted, "hashes")]
    assert sorted(found) == sorted(set(there) & {*asked, ("t", "u")}), "test rows are not kept"


def test_neither_text_nor_another_salt_gives_a_hash_away(world: PrepareWorld) -> None:
    rows = [*varied(200), exchange(f"My address is {SECRET}, please write", "billing")]
    *_, context = numbered_run(world, {"train": [{"source": world.write("a.jsonl", rows)}]})
    data = context.storage.read_bytes(join(context.task.run_uri, ROW_HASHES_PATH))
    salt = adapter_salt(context.storage, context.task.adapter_uri)
    assert len(salt) == 32
    assert adapter_salt(context.storage, context.task.adapter_uri) == salt
    assert adapter_salt(context.storage, context.task.adapter_uri + "-other") != salt
    split = next(name for name in ("train", "validation") if load_split(context, name))  # type: ignore[arg-type]
    key = load_split(context, split)[0].content_key  # type: ignore[arg-type]
    assert row_hash(salt, key) in data
    assert row_hash(bytes(32), key) not in data
    assert SECRET.encode() not in data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not a file of row hashes"),
        (b'{"format": 2, "splits": {}}\n', "is not a file of row hashes"),
        (b'{"format": 1, "splits": {"train": 2}}\n' + bytes(16), "breaks off in train"),
        (b'{"format": 1, "splits": {"train": 1}}\n' + bytes(15), "breaks off in train"),
    ],
    ids=["empty", "another format", "a hash less", "a byte less"],
)
def test_a_damaged_file_of_hashes_is_named(data: bytes, says: str) -> None:
    with pytest.raises(StageError, match=says):
        list(find_hashes(io.BytesIO(data), {bytes(16)}, "v1/row-hashes.dat"))


def publish(context: StageContext, number: int, *, hashes: bool = True) -> None:
    """What of a version the look-up reads."""
    version = join(context.task.adapter_uri, f"versions/v{number}")
    if hashes:
        data = context.storage.read_bytes(join(context.task.run_uri, ROW_HASHES_PATH))
        context.storage.write_bytes(join(version, ROW_HASHES), data)
    context.storage.write_bytes(join(version, "manifest.json"), b"{}")


@pytest.fixture
def versions(world: PrepareWorld) -> PrepareWorld:
    """v1 of 200 rows, v2 of 150 others, v3 without hashes, and a v4 that never got a manifest."""
    for number, rows in ((1, varied(200)), (2, varied(150, 1000))):
        *_, context = numbered_run(world, {"train": [{"source": world.write(f"{number}.jsonl", rows)}]}, number)
        publish(context, number)
    publish(context, 3, hashes=False)
    context.storage.write_bytes(join(context.task.adapter_uri, "versions/v4/claim.json"), b"{}")
    return world


def asked(world: PrepareWorld, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    path = world.write("asked.jsonl", rows).removeprefix("file://")
    code = trained_on.main(["--rows", path, "--storage", f"file://{world.folder}/store", *more])
    answer = json.loads(capsys.readouterr().out)
    assert ("problem" in answer) is bool(code)
    return answer


def test_versions_trained_on_a_row_are_named(versions: PrepareWorld, capsys: pytest.CaptureFixture[str]) -> None:
    context = versions.open(versions.task({"train": [{"source": "file:///none"}]}))
    learned = {row.prompt[-1]["content"] for row in load_split(context, "train")}
    rows: list[dict[str, Any]] = [row for row in varied(200) if row["prompt"] in learned][:3]
    chat = {
        "messages": [
            {"role": "system", "content": "Sort tickets"},
            {"role": "user", "content": rows[0]["prompt"]},
            {"role": "assistant", "content": rows[0]["completion"]},
        ]
    }
    answer = asked(versions, [chat], capsys)
    assert [version["version"] for version in answer["trainedOn"]] == ["team/triage@v1"], "whatever the layout"
    assert answer["trainedOn"][0]["rows"] == {"train": 1}
    assert answer["trainedOn"][0]["first"] == ["asked.jsonl line 1 (train)"]
    assert answer["notTrainedOn"] == ["team/triage@v2"]
    assert answer["unknown"] == ["team/triage@v3"]
    three = asked(versions, [*rows, varied(1, 5000)[0]], capsys, "--adapter", "triage")
    assert three["trainedOn"][0]["rows"] == {"train": 3}
    nearly = asked(versions, [{**rows[0], "prompt": rows[0]["prompt"] + " "}], capsys)
    assert nearly["trainedOn"] == [], "another text is another row"


def told(text: str) -> str:
    return f"\n\nHuman: {text}\n\nAssistant: sure\n\nHuman: go on"


def as_lists(row: dict[str, str]) -> dict[str, Any]:
    return {"conversations": {"from": ["human", "gpt"], "value": [row["prompt"], row["completion"]]}}


def as_chat(row: dict[str, str]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    }


def test_rows_are_found_that_were_weighed_redacted_replayed_and_in_another_layout(
    world: PrepareWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, general = varied(200), varied(40, 4000)
    rows[:40] = [{**row, "prompt": f"{row['prompt']} Mail {number}{SECRET}"} for number, row in enumerate(rows[:40])]
    data = {
        "train": [{"source": world.write("a.jsonl", [as_lists(row) for row in rows]), "weight": 0.5}],
        "replay": {"source": world.write("r.jsonl", general), "fraction": 0.1},
        "systemPrompt": "Sort tickets",
        "checks": {"pii": "redact", "minimumRows": 1},
    }
    *_, context = numbered_run(world, data)
    publish(context, 1)
    learned = {split: load_split(context, split) for split in ("train", "validation", "replay")}  # type: ignore[arg-type]
    assert any("<EMAIL_ADDRESS>" in row.prompt[-1]["content"] for row in learned["train"])
    answer = asked(world, [as_chat(row) for row in [*rows, *general]], capsys)
    assert answer["trainedOn"][0]["rows"] == {split: len(found) for split, found in learned.items()}


def test_pairs_are_found_as_transcripts_and_as_messages(
    world: PrepareWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [
        {"chosen": f"{told(row['prompt'])}\n\nAssistant: yes", "rejected": f"{told(row['prompt'])}\n\nAssistant: no"}
        for row in varied(200)
    ]
    *_, context = numbered_run(
        world, {"train": [{"source": world.write("a.jsonl", pairs)}]}, method={"objective": "dpo"}
    )
    publish(context, 1)
    learned = {split: len(load_split(context, split)) for split in ("train", "validation")}  # type: ignore[arg-type]
    assert asked(world, pairs, capsys)["trainedOn"][0]["rows"] == learned
    prompt = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "sure"}]
    asks = [{**prompt[0], "content": row["prompt"]} for row in varied(200)]
    said = [
        {"prompt": [ask, prompt[1], {"role": "user", "content": "go on"}], "chosen": "yes", "rejected": "no"}
        for ask in asks
    ]
    assert asked(world, said, capsys)["trainedOn"][0]["rows"] == learned


@pytest.mark.parametrize("labels", [(1, 0), ("true", "false"), (None, None), ("good", "bad")])
def test_a_judged_answer_is_found_however_its_judgement_is_written(
    world: PrepareWorld, capsys: pytest.CaptureFixture[str], labels: tuple[Any, Any]
) -> None:
    judged = [{**row, "label": number % 2} for number, row in enumerate(varied(200))]
    *_, context = numbered_run(
        world, {"train": [{"source": world.write("a.jsonl", judged)}]}, method={"objective": "kto"}
    )
    publish(context, 1)
    learned = {split: len(load_split(context, split)) for split in ("train", "validation")}  # type: ignore[arg-type]
    answer = asked(world, [{**row, "label": labels[not row["label"]]} for row in judged], capsys)
    assert answer["trainedOn"][0]["rows"] == learned
    assert answer["differentRows"] == 200


def test_a_row_held_out_for_test_was_not_trained_on(versions: PrepareWorld, capsys: pytest.CaptureFixture[str]) -> None:
    context = versions.open(versions.task({"train": [{"source": "file:///none"}]}))
    held = load_split(context, "test")[0]
    answer = asked(versions, [exchange(held.prompt[-1]["content"], held.answer)], capsys)
    assert answer["trainedOn"] == []


def test_what_cannot_be_looked_up_is_said(versions: PrepareWorld, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no version of other" in asked(versions, varied(1), capsys, "--adapter", "other")["problem"]["message"]
    bad = asked(versions, [{"prompt": "p"}], capsys)
    assert "asked.jsonl line 1" in bad["problem"]["message"]


def test_the_command_line_tells_it(versions: PrepareWorld, capfd: pytest.CaptureFixture[str]) -> None:
    path = versions.write("asked.jsonl", varied(200)).removeprefix("file://")
    storage = f"file://{versions.folder}/store"
    assert finetune(["lineage", path, "--storage", storage]) == 0
    said = capfd.readouterr().out
    assert said.startswith("team/triage@v1  ")
    assert "200 rows looked up; 1 version has one, 1 has none" in said
    assert "team/triage@v3" in said.splitlines()[-1]
    assert finetune(["lineage", path, "--storage", "gs://bucket"]) == 2
    assert "is no storage root" in capfd.readouterr().err
    assert finetune(["lineage", str(versions.folder / "none.jsonl"), "--storage", storage]) == 2
    assert "none.jsonl" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("question", "is not KEY=NAME"),
        ("prompt=", "is not KEY=NAME"),
        ("promt=question", "there is no key 'promt'; the keys are messages, conversations, prompt"),
        ("prompt=a,prompt=b", "prompt is named twice"),
        ("messages=m,prompt=p", "columns.messages belongs to chat rows"),
    ],
)
def test_impossible_names_of_columns_are_refused(columns: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        finetune(["lineage", "rows.csv", "--columns", columns])
    assert ended.value.code == 2
    assert says in capfd.readouterr().err


def test_rows_whose_columns_have_other_names_are_looked_up(
    versions: PrepareWorld, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": row["prompt"], "the answer": row["completion"]} for row in varied(200)]
    path = versions.write("asked.jsonl", rows).removeprefix("file://")
    arguments = ["lineage", path, "--storage", f"file://{versions.folder}/store"]
    assert finetune(arguments) == 2
    assert "--columns prompt=NAME" in capfd.readouterr().err
    assert finetune([*arguments, "--columns", "prompt=question,completion=the answer"]) == 0
    assert capfd.readouterr().out.startswith("team/triage@v1  ")


def test_versions_on_s3_are_looked_through(
    world: PrepareWorld, s3: S3Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.storage = s3_storage(s3, world.folder, "/adapters")
    rows = varied(200)
    *_, context = numbered_run(world, {"train": [{"source": world.write("1.jsonl", rows)}]})
    publish(context, 1)
    learned = len(load_split(context, "train"))
    path = world.write("asked.jsonl", rows).removeprefix("file://")
    arguments = ["lineage", path, "--storage", world.storage["uri"], "--endpoint", s3.endpoint]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.read_only.access_key)  # a look-up needs no right to write
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.read_only.secret_key)
    assert finetune([*arguments, "-o", "json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert [(version["version"], version["rows"]["train"]) for version in answer["trainedOn"]] == [
        ("team/triage@v1", learned)
    ]
    assert finetune([*arguments, "--adapter", "other"]) == 2
    assert "has no version of other" in capfd.readouterr().err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert finetune(arguments) == 2
    refused = capfd.readouterr().err
    assert "Traceback" not in refused
    assert "is denied" in refused
