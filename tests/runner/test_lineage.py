"""The documents of prepared data: lineage and data report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.licences import licence_of
from finetune_runner.data.outcome import length_buckets, token_lengths
from finetune_runner.data.prepared import load_manifest
from finetune_runner.errors import StageError
from tests.runner.preparing import document, numbered_run
from tests.runner.stores import PrepareWorld, exchange, varied

SECRET = "jane.roe@example.org"
COMMIT = "a" * 40


def test_lineage_names_everything_that_was_done(world: PrepareWorld) -> None:
    general = varied(60, 2000)
    data = {
        "train": [{"source": world.write("a.jsonl", [*varied(200), varied(1)[0]]), "weight": 2.0}],
        "replay": {"source": world.write("b.jsonl", general), "fraction": 0.1},
    }
    result, _, context = numbered_run(world, data)
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


def ledger(lineage: dict[str, Any]) -> dict[str, int]:
    """Rows by split as the transformations leave them, from what the sources had."""
    rows: Counter[str] = Counter()
    for source in lineage["sources"]:
        rows[source["usedFor"]] += source["rows"]
    for step in lineage["transformations"]:
        for split, dropped in (step.get("copies") or step.get("dropped", {})).items():
            rows[split] -= dropped
        if "split" in step:
            parts = Counter(step["split"]["rows"])
            assert rows["pool"] == sum(parts[part] - rows[part] for part in ("train", "validation", "test"))
            rows = parts
        if "weights" in step:
            assert rows["train"] == step["weights"]["before"]
            rows["train"] = step["weights"]["after"]
        if "replay" in step:
            assert rows["replay"] == step["replay"]["available"]
            rows["replay"] = step["replay"]["taken"]
    return dict(rows)


@pytest.mark.parametrize("own", [True, False], ids=["sources of their own", "split off"])
def test_what_came_in_and_went_adds_up_row_by_row(world: PrepareWorld, own: bool) -> None:
    first, second = varied(200), varied(160, 3000)
    first[3:6] = [{**case, "prompt": f"{case['prompt']} {SECRET}"} for case in first[3:6]]
    first += [
        *first[10:14],
        exchange("asked without an answer", ""),
        exchange("what?", "N/A"),
        exchange("long", "x " * 300),
    ]
    second += [exchange(case["prompt"], "another answer") for case in second[:3]]
    second += [exchange(case["prompt"] + "!", case["completion"]) for case in second[20:26]]
    second += [exchange("asked of a machine", "I cannot help with that."), exchange("long " * 300, "so it is")]
    data: dict[str, Any] = {
        "train": [
            {"source": world.write("a.jsonl", first), "weight": 2.5},
            {"source": world.write("b.jsonl", second), "weight": 0.5},
        ],
        "replay": {"source": world.write("r.jsonl", [*varied(300, 6000), *first[20:23]]), "fraction": 0.2},
        "overlong": "drop",
        "checks": {
            "pii": "redact",
            "minimumRows": 1,
            **dict.fromkeys(("nearDuplicates", "conflictingAnswers", "emptyAnswers", "refusals", "language"), "drop"),
        },
    }
    if own:
        data["test"] = {"source": world.write("t.jsonl", [*varied(50, 9000), *first[30:35], *second[40:42]])}
        data["validation"] = {"source": world.write("v.jsonl", [*varied(30, 9500), exchange("why?", "-")])}
    result, _, context = numbered_run(world, data, training={"maxLength": 300})
    lineage = document(context, "lineage.json")
    rows = result.rows.to_wire()
    assert {split: count for split, count in ledger(lineage).items() if count} == {
        split: rows[split] for split in ("train", "validation", "test", "replay")
    }
    kept = [source["kept"] for source in lineage["sources"]]
    assert sum(each.get("replay", 0) for each in kept) == rows["replay"]
    assert sum(each.get("test", 0) for each in kept) == rows["test"]
    assert all(sum(each.values()) <= source["rows"] for each, source in zip(kept, lineage["sources"], strict=True))
    steps = lineage["transformations"]
    assert result.rows.dropped == sum(sum(step.get("dropped", {}).values()) for step in steps)
    (long,) = (step for step in steps if step.get("check") == "lengths")
    assert sum(long["dropped"].values()) == 2
    report = document(context, "data-report.json")
    assert "1 answer without any text, dropped" in json.dumps(report["remarks"])
    assert [said["check"] for said in report["remarks"]].count("format") == len(lineage["sources"])


@pytest.mark.parametrize(
    ("second", "weight", "says"),
    [
        (varied(3, 5000), 0.01, "of its 3 rows"),
        (varied(40), 1.0, "nothing is left in train of its 40 rows; see what checks took, or leave data.train[1] out"),
        (varied(40, 5000), 1.0, ""),
    ],
    ids=["weighed to nothing", "all of it there already", "used"],
)
def test_a_source_that_ends_with_nothing_is_told(
    world: PrepareWorld, second: list[dict[str, Any]], weight: float, says: str
) -> None:
    first = {"source": world.write("a.jsonl", varied(200))}
    data = {"train": [first, {"source": world.write("b.jsonl", second), "weight": weight}]}
    _, findings, context = numbered_run(world, data)
    told = [finding.message for finding in findings if finding.check == "sources"]
    assert len(told) == bool(says)
    assert all(says in message for message in told)
    kept = document(context, "lineage.json")["sources"][1]["kept"]
    assert ("train" in kept) is not bool(says)


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
    result, _, context = numbered_run(
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
    for words in ("<b>.jsonl line 202", "1 exact duplicate, dropped", "billing", "answer refuses", "not stated"):
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
