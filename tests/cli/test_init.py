from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from finetune_api.finetunejob import FineTuneJob
from finetune_api.validation import accepted_values, validate_document
from finetune_cli.drafting import Draft, draft_yaml, layout_of
from finetune_cli.errors import CliError
from finetune_cli.main import main
from finetune_cli.sampling import sample_rows

TABLE = [{"id": str(n), "text": f"where is parcel {n}?", "category": ["billing", "delivery"][n % 2]} for n in range(60)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def jsonl_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def array(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"data": rows}))


def comma_separated(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.jsonl", jsonl),
        ("t.jsonl.gz", jsonl_gz),
        ("t.json", array),
        ("t.csv", comma_separated),
        ("t.parquet", parquet),
    ],
)
def test_table_of_texts_and_labels(
    tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, Any]]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / name, TABLE)
    output = tmp_path / "job.yaml"
    code = main(["init", "--data", str(tmp_path / name), "--label", "category", "-o", str(output)])

    assert code == 0, capsys.readouterr().err
    assert validate_document(output.read_text()) == []
    spec = YAML(typ="safe").load(output)["spec"]
    dataset = spec["data"]["train"][0]
    assert dataset["source"] == f"file://{name}"
    assert (dataset["format"], dataset["columns"]) == (
        "promptCompletion",
        {"prompt": "text", "completion": "category"},
    )
    assert spec["evaluation"]["task"] == {"type": "classification"}
    assert "billing, delivery" in spec["evaluation"]["baselinePrompt"]


def drafted(rows: list[dict[str, Any]], task: str, label: str | None = None, text: str | None = None) -> str:
    draft = Draft("x", "file://x.jsonl", "hf://a/b", task, label, text)  # type: ignore[arg-type]
    return draft_yaml(draft, layout_of(rows, label, text))


CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"q{n}"},
            {"role": "assistant", "content": json.dumps({"kind": "ab"[n % 2], "n": n})},
        ]
    }
    for n in range(4)
]


def test_label_inside_json_answers_becomes_label_path_and_schema() -> None:
    spec = accepted_values(drafted(CHAT, "classification", "kind"))[0]["spec"]

    assert spec["evaluation"]["task"]["labelPath"] == "$.kind"
    assert spec["evaluation"]["task"]["schema"]["properties"] == {
        "kind": {"enum": ["a", "b"]},
        "n": {"type": "integer"},
    }
    assert spec["data"]["train"][0]["format"] == "chat"


def test_extraction_and_generation() -> None:
    extraction = accepted_values(drafted(CHAT, "extraction"))[0]["spec"]["evaluation"]
    alpaca = [{"instruction": "say", "input": "", "output": "hi"}]
    generation = accepted_values(drafted(alpaca, "generation"))[0]["spec"]

    assert extraction["task"]["schema"]["required"] == ["kind", "n"]
    assert generation["data"]["train"][0]["format"] == "alpaca"
    assert generation["evaluation"]["metrics"] == [{"name": "rougeL"}]


@pytest.mark.parametrize(
    ("rows", "task", "label", "text", "said"),
    [
        (TABLE, "classification", "kind", None, "there is no column kind"),
        (TABLE, "classification", "category", "body", "there is no column body"),
        (TABLE, "generation", None, None, "no layout"),
        (TABLE, "classification", "id", None, "more than 40"),
        (TABLE[::2], "classification", "category", None, "nothing to learn"),
        (CHAT, "classification", "colour", None, "not every answer has a text colour"),
        (TABLE, "extraction", "category", None, "JSON objects"),
        ([{"category": "a"}, {"category": "b"}], "classification", "category", None, "no column holds the input"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_the_columns(
    rows: list[dict[str, Any]], task: str, label: str | None, text: str | None, said: str
) -> None:
    with pytest.raises(CliError, match=said):
        drafted(rows, task, label, text)


def test_sharegpt_is_chat() -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    layout = layout_of([{"conversations": talk}], None, None)
    assert (layout.format, layout.answers) == ("chat", ["Hello"])


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9), min_size=1, max_size=4), min_size=1, max_size=4)
)
def test_any_table_is_laid_out_or_refused(rows: list[dict[str, Any]]) -> None:
    label = next(iter(rows[0]))
    try:
        answers = layout_of(rows, label, None).answers
    except CliError as error:
        answers = [error.message]
    assert answers


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.txt", b"x", "unknown kind of file"),
        ("t.csv", b"", "no rows"),
        ("t.jsonl", b"{}\nx\n", "t.jsonl:2: not JSON"),
        ("t.jsonl", b"[1]\n", "row 1 is not an object"),
        ("t.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
        ("t.json", b'{"a": 1}', "no array"),
        ("t.parquet", b"PAR0", "not Parquet"),
        ("t.jsonl.gz", b"plain", "t.jsonl.gz:1: not JSON"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CliError, match=said):
        sample_rows(tmp_path / name)


def test_existing_output_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonl(tmp_path / "t.jsonl", TABLE)
    output = tmp_path / "job.yaml"
    output.write_text("mine")
    arguments = ["init", "--data", str(tmp_path / "t.jsonl"), "--label", "category", "-o", str(output)]

    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert main([*arguments, "--force"]) == 0


PAIRS = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": "bad"} for n in range(60)]
MESSAGES = [
    {
        "chosen": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": json.dumps({"kind": "ab"[n % 2]})},
        ],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}],
    }
    for n in range(60)
]
JUDGED = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n % 3 == 0} for n in range(60)]


@pytest.mark.parametrize(
    ("name", "write", "rows", "objective"),
    [
        ("t.jsonl", jsonl, PAIRS, "dpo"),
        ("t.json", array, MESSAGES, "dpo"),
        ("t.parquet", parquet, PAIRS, "dpo"),
        ("t.jsonl", jsonl, JUDGED, "kto"),
        ("t.csv", comma_separated, JUDGED, "kto"),  # there true is a text
    ],
)
def test_preferences_become_their_objective(
    tmp_path: Path,
    name: str,
    write: Callable[[Path, list[dict[str, Any]]], None],
    rows: list[dict[str, Any]],
    objective: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / name, rows)
    output = tmp_path / "job.yaml"
    assert main(["init", "--data", str(tmp_path / name), "-o", str(output)]) == 0
    assert f"generation by {objective}" in capsys.readouterr().out
    assert validate_document(output.read_text()) == []
    assert "# training: {learningRate: 5e-06, epochs: 1}" in output.read_text()
    job = FineTuneJob.from_wire(accepted_values(output.read_text())[0])
    assert job.spec.data.train[0].format == "preference"
    assert job.spec.method.objective == objective
    # Nothing is written down that a later recipe should decide.
    assert job.spec.training.learning_rate is None


def test_better_answers_say_what_the_task_is() -> None:
    spec = accepted_values(drafted(MESSAGES, "classification", "kind"))[0]["spec"]
    assert spec["evaluation"]["task"]["labelPath"] == "$.kind"
    assert spec["method"]["objective"] == "dpo"


@pytest.mark.parametrize("good", [True, False])
def test_answers_of_one_kind_are_no_preferences(good: bool) -> None:
    with pytest.raises(CliError, match=f"every answer has label {str(good).lower()}"):
        layout_of([row | {"label": good} for row in JUDGED], None, None)


@pytest.mark.parametrize("spelled", [(1, 0), ("1", "0"), (1.0, 0.0), (" TRUE", "False")])
def test_judgements_are_drafted_as_prepare_reads_them(spelled: tuple[Any, Any]) -> None:
    rows = [row | {"label": spelled[0] if row["label"] else spelled[1]} for row in JUDGED]
    layout = layout_of(rows, None, None)
    assert (layout.objective, len(layout.answers)) == ("kto", 20)


def test_a_label_that_is_no_judgement_is_a_class() -> None:
    rows = [{"prompt": f"q{n}", "completion": "a", "label": ["spam", "ham"][n % 2]} for n in range(60)]
    assert layout_of(rows, "label", "prompt").objective == "sft"
    stars = [row | {"label": n % 3} for n, row in enumerate(rows)]
    assert layout_of(stars, None, None).format == "promptCompletion"
    assert layout_of(rows, None, None).format == "promptCompletion"


def test_sft_leaves_rate_and_epochs_to_the_recipe() -> None:
    text = drafted(CHAT, "generation")
    assert "# training: {learningRate: 0.0002, epochs: 3}" in text
    assert "training" not in accepted_values(text)[0]["spec"]
    assert "method" not in accepted_values(text)[0]["spec"]


TALK = {"role": ["user", "assistant"], "content": ["q", "a"]}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"messages": json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])},
        {"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}},
        {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"chosen": TALK, "rejected": TALK},
        {"prompt": "q", "completion": "a"},
    ],
)
def test_answers_are_found_in_every_layout_that_a_job_takes(row: dict[str, Any]) -> None:
    assert layout_of([row], None, None).answers == ["a"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons.csv", b"prompt;completion\n1,5;a\n"),
        ("t.tsv", b"prompt\tcompletion\nq\ta\n"),
        ("long.csv", b"prompt,completion\n" + b"x" * 200_000 + b",a\n"),
        ("lines.json", b'{"prompt": "q", "completion": "a"}\n{"prompt": "r", "completion": "a"}\n'),
        ("joined.jsonl", b'{"prompt": "q", "completion": "a"}\n\xef\xbb\xbf{"prompt": "r", "completion": "a"}\n'),
        ("unpacked.jsonl.gz", b'{"prompt": "q", "completion": "a"}\n'),
        ("packed.jsonl", gzip.compress(b'{"prompt": "q", "completion": "a"}\n')),
    ],
)
def test_files_that_a_job_takes_are_sampled(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert {row["completion"] for row in sample_rows(tmp_path / name)} == {"a"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("deep.jsonl", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep.jsonl:1: not JSON: maximum recursion"),
        ("deep.json", b"[" * 100_000 + b"]" * 100_000, "deep.json: not JSON: maximum recursion"),
        ("more.csv", b"a,b\n1,2\n1,2,3\n", "more.csv:3: has 3 fields, the header has 2"),
        ("open.csv", b'a,b\n"1,2\n', "open.csv:2: not CSV"),
        ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:-9], "cut.jsonl.gz: the gzip data are damaged"),
    ],
)
def test_damaged_files_are_no_internal_error(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CliError, match=says) as caught:
        sample_rows(tmp_path / name)
    assert caught.value.fix


def test_messages_that_are_no_conversation_are_left_to_validate() -> None:
    assert layout_of([{"messages": ["x"]}, {"messages": None}], None, None).answers == ["", ""]
