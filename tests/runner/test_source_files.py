"""Which files of a folder or data set are read: subset and split, by the card, by folders and by names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.loading import fetch, load
from finetune_runner.data.rows import Row
from finetune_runner.data.source_files import Choice, choose_files, split_of
from finetune_runner.data.wanted import split_sources
from finetune_runner.errors import StageError
from tests.cluster.harness.s3 import S3Server
from tests.runner.stores import PrepareWorld, exchange, s3_storage

WHERE = "data.train[0] (hf://datasets/acme/rows)"
SHARDS = ["data/test-00000-of-00001.parquet", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


def card(configs: str) -> str:
    return f"---\nlicense: mit\nconfigs:\n{configs}\n---\n# Rows\n"


TWO = card("- config_name: en\n  data_files: en/*.jsonl\n- config_name: de\n  data_files: [de/a.jsonl, de/b.jsonl]")
NAMED = card(
    "- config_name: main\n  data_dir: v2\n  data_files:\n"
    "  - {split: train, path: [train/**, more.csv]}\n  - {split: held.out, path: x?.csv}"
)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("train.jsonl.gz", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/train_sft-00000-of-00001.parquet", "train_sft"),
        ("data/dev-00000-of-00001.parquet", "validation"),
        ("tickets.test.csv", "test"),
        ("my_eval.csv", "test"),
        ("valid/part 1.jsonl", "validation"),
        ("a.jsonl", None),
        ("latest.jsonl", None),
        ("contest.csv", None),
        ("restrain.csv", None),
        ("trainer/a.csv", None),
    ],
)
def test_the_split_that_a_name_says(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("names", "choice", "text", "chosen", "said"),
    [
        (["a.jsonl", "b.csv"], Choice(), "", ["a.jsonl", "b.csv"], ""),
        (["b.csv", "data/a.csv", "x/c.csv"], Choice(), "", ["b.csv"], ""),
        (["x/c.csv", "data/a.csv"], Choice(), "", ["data/a.csv"], ""),
        (["x/c.csv", "x/y/d.csv", "b.csv"], Choice(subset="x"), "", ["x/c.csv", "x/y/d.csv"], ""),
        (["x/y/d.csv"], Choice(subset="x/y"), "", ["x/y/d.csv"], ""),
        (SHARDS, Choice(), "", SHARDS[1:], "split train: 2 of 3 files; not read: 1 (splits test)"),
        (SHARDS, Choice(split="test"), "", SHARDS[:1], ""),
        (SHARDS, Choice(usual_split="test"), "", SHARDS[:1], "split test: 1 of 3 files; not read: 2 (splits train)"),
        (
            SHARDS,
            Choice(usual_split="validation"),
            "",
            SHARDS,
            "read together: files named like test, train; name a split, or the files, to keep them apart",
        ),
        (
            ["a.jsonl", "test.jsonl"],
            Choice(),
            "",
            ["a.jsonl", "test.jsonl"],
            "read together: files named like test and no split; name a split, or the files, to keep them apart",
        ),
        (["test.csv"], Choice(), "", ["test.csv"], ""),
        (
            ["train/a.csv", "test/b.csv"],
            Choice(),
            "",
            ["train/a.csv"],
            "split train: 1 of 2 files; not read: 1 (splits test)",
        ),
        (["train.csv", "other.csv"], Choice(), "", ["train.csv"], "split train: 1 of 2 files; not read: 1"),
        (["en/1.jsonl", "en/2.jsonl", "de/a.jsonl"], Choice(subset="en"), TWO, ["en/1.jsonl", "en/2.jsonl"], ""),
        (["en/x/1.jsonl", "en/2.jsonl"], Choice(subset="en"), TWO, ["en/2.jsonl"], ""),
        (["de/a.jsonl", "de/b.jsonl", "de/c.jsonl"], Choice(subset="de"), TWO, ["de/a.jsonl", "de/b.jsonl"], ""),
        (
            ["v2/train/x/1.csv", "v2/more.csv", "v2/x1.csv", "v1/more.csv"],
            Choice(),
            NAMED,
            ["v2/more.csv", "v2/train/x/1.csv"],
            "split train: 2 of 3 files; not read: 1 (splits held.out)",
        ),
        (["v2/train/1.csv", "v2/x1.csv"], Choice(split="held.out"), NAMED, ["v2/x1.csv"], ""),
        (["a.csv", "b.csv"], Choice(), card("- {config_name: default, data_files: b.csv}"), ["b.csv"], ""),
        (
            ["train.csv", "test.csv"],
            Choice(split="test"),
            card("- {config_name: a}\n- {config_name: b, default: true}"),
            ["test.csv"],
            "",
        ),
        (["a.csv"], Choice(), card("- {config_name: a, data_files: {train: a.csv, test: b.csv}}"), ["a.csv"], ""),
        (["a.csv"], Choice(), "# no YAML at its head\n", ["a.csv"], ""),
        (["a.csv"], Choice(), "---\nlicense: mit\n---\n", ["a.csv"], ""),
    ],
)  # fmt: skip
def test_what_is_chosen(names: list[str], choice: Choice, text: str, chosen: list[str], said: str) -> None:
    found = choose_files(WHERE, names, choice, text)
    assert found.names == chosen
    assert found.said == said


@pytest.mark.parametrize(
    ("names", "choice", "text", "says"),
    [
        (["x/a.csv", "y/b.csv"], Choice(), "", "has its data files in folders: x, y"),
        (["x/a.csv", "y/b.csv"], Choice(subset="z"), "", "has no subset z; there are: x, y"),
        (["a.csv"], Choice(subset="z"), "", "has no subset z; there are: none"),
        (["xz/a.csv"], Choice(subset="x"), "", "has no subset x; there is: xz"),
        (SHARDS, Choice(split="validation"), "", "has no split validation; there are: test, train"),
        (["a.csv"], Choice(split="train"), "", "has no split train; there are: none"),
        (["en/1.jsonl"], Choice(), TWO, "has several configurations and no default: en, de"),
        (["en/1.jsonl"], Choice(subset="fr"), TWO, "has no subset fr; there are: en, de"),
        (["v2/train/1.csv"], Choice(split="test"), NAMED, "has no split test; there are: train, held.out"),
        (["fr/1.jsonl"], Choice(subset="en"), TWO, "no data file matches en/*.jsonl"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(names: list[str], choice: Choice, text: str, says: str) -> None:
    with pytest.raises(StageError) as caught:
        choose_files(WHERE, names, choice, text)
    assert caught.value.message.startswith(WHERE)
    assert says in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("configs", ["- [a]", "- {data_files: x}", "{", "- a", "5"])
def test_a_card_that_cannot_be_read_is_named(configs: str) -> None:
    with pytest.raises(StageError, match=r"YAML at the head of the data set's card README\.md") as caught:
        choose_files(WHERE, ["a.csv"], Choice(), card(configs))
    assert caught.value.exit_code == ExitCode.INVALID_DATA


NAMES = st.lists(st.from_regex(r"([a-z_.-]{1,6}/){0,2}(train|test|dev|a|b)[-_.0-9]{0,3}\.(csv|jsonl)", fullmatch=True))
CARDS = st.sampled_from(["", TWO, NAMED]) | st.text(max_size=60).map(card)


@given(NAMES, st.none() | st.sampled_from(["a", "x/y", "en"]), st.none() | st.sampled_from(["train", "q"]), CARDS)
def test_files_are_chosen_from_those_there_are_or_refused_in_words(
    names: list[str], subset: str | None, split: str | None, text: str
) -> None:
    refused: StageError | None = None
    chosen: list[str] = []
    try:
        chosen = choose_files(WHERE, names, Choice(subset, split), text).names
    except StageError as error:
        refused = error
    if refused is None:
        assert set(chosen) <= set(names)
        assert chosen or not names
    else:
        assert refused.hint
        assert refused.exit_code in (ExitCode.INVALID_SPEC, ExitCode.INVALID_DATA)


# Through the schemes.


def prompts(world: PrepareWorld, data: dict[str, object], split: str = "pool") -> list[str]:
    context = world.open(world.task(data))
    wanted = next(named.wanted for named in split_sources(context.task.spec) if named.split == split)
    rows: list[Row] = []
    load(context, fetch(context, wanted, world.folder / "copies"), lambda row, _: rows.append(row))
    return [row.messages[0]["content"] for row in rows]


def write(folder: Path, name: str, *texts: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(exchange(text, "a")) + "\n" for text in texts))


def test_a_folder_of_this_machine(world: PrepareWorld) -> None:
    for name in ("train.jsonl", "test.jsonl", "de/train.jsonl", ".hidden/train.jsonl"):
        write(world.folder / "rows", name, name)
    source = {"source": f"file://{world.folder}/rows"}
    assert prompts(world, {"train": [source]}) == ["train.jsonl"]
    assert prompts(world, {"train": [source | {"subset": "de"}]}) == ["de/train.jsonl"]
    assert prompts(world, {"train": [source | {"split": "test"}]}) == ["test.jsonl"]
    assert prompts(world, {"train": [source], "test": source}, "test") == ["test.jsonl"]
    with pytest.raises(StageError, match=r"data\.train\[0\] .*/rows\) has no split validation; there are: test, train"):
        prompts(world, {"train": [source | {"split": "validation"}]})


@pytest.mark.parametrize("pattern", ["*.jsonl", "train-0000[01].jsonl", "?.jsonl"])
def test_patterns_are_told_to_be_none(world: PrepareWorld, pattern: str) -> None:
    write(world.folder / "rows", "a.jsonl", "a")
    with pytest.raises(StageError) as caught:
        prompts(world, {"train": [{"source": f"file://{world.folder}/rows/{pattern}"}]})
    assert caught.value.exit_code == ExitCode.SOURCE_NOT_FOUND
    assert "patterns are not read: name a folder" in caught.value.hint


@pytest.mark.parametrize("field", ["subset", "split"])
def test_a_file_has_no_parts(world: PrepareWorld, field: str) -> None:
    source = {"source": world.write("a.jsonl", [exchange("p", "a")]), field: "train"}
    with pytest.raises(StageError, match=r"data\.train\[0\]: .*a\.jsonl is one file") as caught:
        prompts(world, {"train": [source]})
    assert caught.value.exit_code == ExitCode.INVALID_SPEC


def test_a_prefix_of_a_bucket(world: PrepareWorld, s3: S3Server, tmp_path: Path) -> None:
    world.storage = s3_storage(s3, tmp_path)
    bucket = s3.make_bucket()
    for name in ("train.jsonl", "test.jsonl", "de/a.jsonl"):
        write(tmp_path / "up", name, name)
        s3.client().upload_file(str(tmp_path / "up" / name), bucket, f"rows/{name}")
    source = {"source": f"s3://{bucket}/rows"}
    assert prompts(world, {"train": [source]}) == ["train.jsonl"]
    assert prompts(world, {"train": [source | {"subset": "de"}]}) == ["de/a.jsonl"]
    assert prompts(world, {"train": [source | {"split": "test"}]}) == ["test.jsonl"]
