"""Lineage: prepared data taken over by content, row hashes, which versions saw a row, and the data report."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Finding, JobIdentity, PrepareResult
from finetune_cli.main import main as finetune
from finetune_runner import trained_on
from finetune_runner.context import StageContext
from finetune_runner.data.licences import licence_of
from finetune_runner.data.outcome import length_buckets, token_lengths
from finetune_runner.data.prepared import ROW_HASHES_PATH, load_manifest, load_split
from finetune_runner.data.row_hashes import ROW_HASHES, adapter_salt, find_hashes, row_hash, write_row_hashes
from finetune_runner.data.rows import make_row
from finetune_runner.errors import StageError
from finetune_runner.stages import prepare
from finetune_runner.storage import join
from tests.cluster.harness.s3 import S3Server
from tests.runner.stores import PrepareWorld, exchange, s3_storage, store_of, varied

SECRET = "jane.roe@example.org"
COMMIT = "a" * 40


def run(
    world: PrepareWorld, data: dict[str, Any], number: int = 1, **spec: Any
) -> tuple[PrepareResult, list[Finding], StageContext]:
    task = world.task(data, **spec)
    job = JobIdentity(namespace="team", name="job", uid="uid-1", run=number)
    context = world.open(task.model_copy(update={"job": job}))
    context.fence.claim()
    results, findings = prepare.run(context)
    assert results.prepare is not None
    return results.prepare, findings, context


def document(context: StageContext, name: str) -> Any:
    return json.loads(context.storage.read_bytes(join(context.task.run_uri, "prepare", name)))


def cache_files(context: StageContext, below: str = "") -> list[str]:
    return [item.uri for item in context.storage.list(join(context.task.adapter_uri, "cache", below) + "/")]


# The cache.


def test_the_same_data_are_prepared_once(world: PrepareWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*varied(200), varied(1)[0]]
    data = {"train": [{"source": world.write("a.jsonl", rows)}]}
    first, findings, before = run(world, data)
    assert not first.cached
    monkeypatch.setattr(prepare, "RowStore", None)  # whatever reads rows again fails
    again, findings_again, context = run(world, data, 2, training={"learningRate": 1e-3})
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
    ("another task", lambda _, __, spec: spec.update(evaluation={"task": {"type": "classification"}})),
]


@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_whatever_changes_the_data_prepares_them_again(
    world: PrepareWorld, change: Callable[[PrepareWorld, dict[str, Any], dict[str, Any]], None]
) -> None:
    data: dict[str, Any] = {"train": [{"source": world.write("a.jsonl", varied(200))}]}
    spec: dict[str, Any] = {}
    run(world, data)
    change(world, data, spec)
    result, *_ = run(world, data, 2, **spec)
    assert not result.cached


def test_another_tokenizer_counts_again_and_another_gate_does_not(
    world: PrepareWorld, tiny_model: Path, tmp_path: Path
) -> None:
    data = {"train": [{"source": world.write("a.jsonl", varied(200))}]}
    judged: dict[str, Any] = {"metrics": [{"name": "exactMatch"}]}
    run(world, data, evaluation=judged)
    judged["gates"] = [{"metric": "exactMatch", "minimum": 0.5}]
    gated, *_ = run(world, data, 2, evaluation=judged)
    assert gated.cached
    other = tmp_path / "other"
    other.mkdir()
    for item in tiny_model.iterdir():
        (other / item.name).write_bytes(item.read_bytes())
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", "<|end|><|end|>"))
    world.model = f"file://{other}"
    result, *_ = run(world, data, 3, evaluation=judged)
    assert not result.cached
    assert result.train_tokens > gated.train_tokens


@pytest.mark.parametrize("damage", ["file", "test file", "entry", "lost file"])
def test_a_damaged_cache_is_made_again(world: PrepareWorld, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    data = {"train": [{"source": world.write("a.jsonl", varied(200))}]}
    first, _, context = run(world, data)
    entry = next(uri for uri in cache_files(context) if uri.endswith(".json"))
    largest = max(cache_files(context, "prepare/files"), key=lambda uri: len(context.storage.read_bytes(uri)))
    if damage == "entry":
        context.storage.write_bytes(entry, b'{"prepared": ')
    elif damage == "lost file":
        context.storage.delete(largest)
    else:
        uri = largest if damage == "file" else cache_files(context, "test")[0]
        context.storage.write_bytes(uri, gzip.compress(b"{}"))
    result, _, context = run(world, data, 2)
    assert not result.cached
    assert "does not hold and is made again" in caplog.text
    assert result.data_digest == first.data_digest
    third, _, context = run(world, data, 3)
    assert third.cached
    assert load_split(context, "test")


def test_test_rows_are_cached_apart(world: PrepareWorld) -> None:
    *_, context = run(world, {"train": [{"source": world.write("a.jsonl", varied(200))}]})
    test = context.storage.read_bytes(join(context.task.run_uri, "test/test.jsonl.gz"))
    assert [context.storage.read_bytes(uri) for uri in cache_files(context, "test")] == [test]
    assert test not in [context.storage.read_bytes(uri) for uri in cache_files(context, "prepare")]


def test_an_older_attempt_keeps_nothing(world: PrepareWorld) -> None:
    task = world.task({"train": [{"source": world.write("a.jsonl", varied(200))}]})
    old, new = world.open(task), world.open(task)
    old.fence.claim()
    new.fence.claim()
    with pytest.raises(StageError) as caught:
        prepare.run(old)
    assert caught.value.exit_code == ExitCode.FENCED
    assert cache_files(old) == []


# Row hashes.


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
    *_, context = run(world, {"train": [{"source": world.write("a.jsonl", rows)}]})
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


# Which versions were trained on a row.


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
        *_, context = run(world, {"train": [{"source": world.write(f"{number}.jsonl", rows)}]}, number)
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
    *_, context = run(world, {"train": [{"source": world.write("1.jsonl", rows)}]})
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


# The documents.


def test_lineage_names_everything_that_was_done(world: PrepareWorld) -> None:
    general = varied(60, 2000)
    data = {
        "train": [{"source": world.write("a.jsonl", [*varied(200), varied(1)[0]]), "weight": 2.0}],
        "replay": {"source": world.write("b.jsonl", general), "fraction": 0.1},
    }
    result, _, context = run(world, data)
    lineage = document(context, "lineage.json")
    assert [source["usedFor"] for source in lineage["sources"]] == ["pool", "replay"]
    assert lineage["sources"][0]["licence"] == ""
    steps = {next(iter(step)): step for step in lineage["transformations"]}
    assert steps["check"] == {"check": "duplicates", "dropped": {"pool": 1}}
    assert sum(steps["split"]["split"]["rows"].values()) == 260
    assert steps["weights"]["weights"]["after"] == 2 * steps["weights"]["weights"]["before"] == result.rows.train
    assert steps["replay"]["replay"]["taken"] == result.rows.replay
    assert lineage["seed"] == 42
    assert lineage["dataDigest"] == result.data_digest
    manifest = load_manifest(context)
    assert lineage["files"] == {name: manifest["files"][name] for name in lineage["files"]}
    assert set(manifest["files"]) - set(lineage["files"]) == {
        "prepare/lineage.json",
        "prepare/data-report.json",
        "prepare/data-report.html",
    }


class Hub(BaseHTTPRequestHandler):
    """The hub's answer about a data set."""

    card: ClassVar[dict[str, Any] | None] = None

    def do_GET(self) -> None:
        """Answer about owner/name; nothing else is there."""
        known = self.path.split("?")[0] == f"/api/datasets/owner/name/revision/{COMMIT}"
        body = {"id": "owner/name", "sha": COMMIT, "siblings": [], "tags": [], "private": False}
        data = json.dumps(body | ({"cardData": self.card} if self.card is not None else {})).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A server that the hub's own client asks."""
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield Hub
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": "cc-by-4.0"}, "cc-by-4.0"),
        ({"license": ["mit", "odc-by"]}, "mit, odc-by"),
        ({"language": "en"}, ""),
        (None, ""),
    ],
    ids=["one", "two", "a card without", "no card"],
)
def test_the_licence_is_what_the_card_on_the_hub_says(
    world: PrepareWorld, hub: type[Hub], card: dict[str, Any] | None, licence: str
) -> None:
    hub.card = card
    context = world.open(world.task({"train": [{"source": "file:///none"}]}))
    assert licence_of(context, "hf://datasets/owner/name@main/data/train.jsonl", COMMIT, None) == licence
    with pytest.raises(StageError) as caught:
        licence_of(context, "hf://datasets/owner/other/train.jsonl", COMMIT, None)
    assert caught.value.exit_code == ExitCode.SOURCE_NOT_FOUND
    assert licence_of(context, "s3://bucket/owner/name", "", None) == ""


class Tags(HTMLParser):
    """Every tag and address of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_data_report_shows_positions_and_never_text(world: PrepareWorld) -> None:
    rows = [*varied(200), varied(1)[0], exchange(f"Write to {SECRET}", "I'm sorry, but I can't help with that.")]
    result, _, context = run(
        world,
        {"train": [{"source": world.write("<b>.jsonl", rows)}]},
        evaluation={
            "task": {"type": "classification"},
            "metrics": [{"name": "f1"}],
            "baselinePrompt": "Answer billing or something else.",
        },
        training={"maxLength": 45},
    )
    report = document(context, "data-report.json")
    assert report["rows"] == {
        "train": result.rows.train,
        "validation": result.rows.validation,
        "test": result.rows.test,
    }
    checks = {check["check"]: check for check in report["checks"]}
    assert checks["duplicates"]["dropped"] == {"pool": 1}
    assert checks["refusals"]["remarks"][0]["positions"] == ["<b>.jsonl line 202"]
    assert report["labels"].pop("billing") == 67, "the job itself writes this one"
    assert all(name.startswith("class of <b>.jsonl line ") for name in report["labels"])
    assert report["labels"]
    assert sum(bucket["rows"] for bucket in report["lengthBuckets"]) == result.rows.train
    page = context.storage.read_bytes(result.report_uri).decode()
    seen = Tags()
    seen.feed(page)
    assert "b" not in seen.tags, "names are escaped"
    assert "script" not in seen.tags
    assert seen.addresses == []
    assert "default-src 'none'" in page
    for words in ("<b>.jsonl line 202", "1 exact duplicates, dropped", "billing", "answers refuse", "not stated"):
        assert words in seen.text
    for text in (page, json.dumps(report)):
        assert SECRET not in text
        assert varied(1)[0]["prompt"] not in text


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60), st.integers(1, 5000))
def test_quantiles_of_a_histogram_are_those_of_the_rows(totals: list[int], most: int) -> None:
    ordered = sorted(totals)
    histogram = [(total, ordered.count(total)) for total in sorted(set(ordered))]
    lengths = token_lengths(histogram, most)
    assert lengths.p50 == ordered[int(0.5 * len(ordered))]
    assert lengths.p95 == ordered[int(0.95 * len(ordered))]
    assert lengths.maximum == ordered[-1]
    assert lengths.over_maximum == sum(total > most for total in ordered)
    buckets = length_buckets(histogram)
    assert len(buckets) <= 40
    assert sum(bucket["rows"] for bucket in buckets) == len(ordered)
    assert all(
        bucket["rows"] == sum(bucket["from"] <= total <= bucket["to"] for total in ordered) for bucket in buckets
    )
    assert buckets[0]["from"] == ordered[0]
    assert buckets[-1]["from"] <= ordered[-1] <= buckets[-1]["to"]
