"""Data sets of the hub, read with the hub's own client from a server that speaks its API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.model_source import fetch_model, model_digest
from finetune_runner.stages import prepare
from tests.runner.hub_jobs import OFFICIAL, context_of, secret
from tests.runner.hub_server import HubServer, sha256
from tests.runner.stores import PrepareWorld, varied


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"prompt": text, "completion": "a"}).encode() + b"\n" for text in texts)


CARD = b"""---
license: mit
configs:
- config_name: en
  data_files:
  - {split: train, path: "en/train-*.jsonl"}
  - {split: test, path: en/test.jsonl}
- config_name: de
  default: true
  data_files: "de/*.jsonl"
---
# A data set
"""


DATASETS = {
    "a file": ("/data/a.jsonl", {}, {"data/a.jsonl": lines("a"), "data/b.jsonl": lines("b")}, ["a"]),
    "a folder": (
        "/data",
        {},
        {"data/a.jsonl": lines("a"), "data/b.jsonl": lines("b"), "c.jsonl": lines("c")},
        ["a", "b"],
    ),
    "its folder data": ("", {}, {"README.md": b"hi", "data/a.jsonl": lines("a"), "x/b.jsonl": lines("b")}, ["a"]),
    "default of the card": (
        "",
        {},
        {"README.md": CARD, "en/train-0.jsonl": lines("a"), "de/x.jsonl": lines("b")},
        ["b"],
    ),
    "subset of the card": (
        "",
        {"subset": "en"},
        {"README.md": CARD, "en/train-0.jsonl": lines("a"), "en/test.jsonl": lines("t"), "de/x.jsonl": lines("b")},
        ["a"],
    ),
    "split of the card": (
        "",
        {"subset": "en", "split": "test"},
        {"README.md": CARD, "en/train-0.jsonl": lines("a"), "en/test.jsonl": lines("t"), "de/x.jsonl": lines("b")},
        ["t"],
    ),
    "subset that is a folder": ("", {"subset": "x"}, {"data/a.jsonl": lines("a"), "x/b.jsonl": lines("b")}, ["b"]),
    "train of shards": (
        "",
        {},
        {
            "data/train-00000-of-00002.jsonl": lines("a"),
            "data/train-00001-of-00002.jsonl": lines("b"),
            "data/test-00000-of-00001.jsonl": lines("t"),
        },
        ["a", "b"],
    ),
}


@pytest.mark.parametrize("case", DATASETS)
def test_a_dataset_of_the_hub(world: PrepareWorld, server: HubServer, case: str) -> None:
    from finetune_runner.data.loading import fetch, load
    from finetune_runner.data.rows import Row
    from finetune_runner.data.wanted import split_sources

    path, choice, files, prompts = DATASETS[case]
    commit = server.dataset("acme/rows", files).refs["main"]
    data = {"train": [{"source": f"hf://datasets/acme/rows{path}", "secretRef": secret(world, server), **choice}]}
    context = world.open(world.task(data))
    wanted = next(split_sources(context.task.spec)).wanted
    fetched = fetch(context, wanted, world.folder / "copies")
    rows: list[Row] = []
    load(context, fetched, lambda row, _: rows.append(row))
    assert [row.messages[0]["content"] for row in rows] == prompts
    assert fetched.revision == commit


def test_a_datasets_commit_is_in_the_lineage_and_resolved_once(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    rows = varied(240)
    files = {
        f"{name}.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in part)
        for name, part in {"train": rows[:180], "test": rows[180:]}.items()
    }
    repo = server.dataset("acme/rows", files)
    old = repo.refs["main"]
    repo.refs["v1"] = old
    repo.commit({"train.jsonl": b""})
    source = {"source": "hf://datasets/acme/rows@v1", "secretRef": secret(world, server)}
    context = world.open(world.task({"train": [source], "test": source}))
    results, findings = prepare.run(context)
    assert results.prepare is not None
    assert results.prepare.rows.test == 60
    lineage = json.loads(context.storage.read_bytes(f"{context.task.run_uri}/prepare/lineage.json"))
    assert [source["revision"] for source in lineage["sources"]] == [old, old]
    assert len(server.gets("/revision/v1")) == 1
    assert any("split train: 1 of 2 files" in finding.message for finding in findings)


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files count as progress, and the client tries again at once."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _seconds: None)


def test_a_hub_that_dies_while_a_data_set_is_copied_is_unavailable_and_nothing_half_is_used(
    world: PrepareWorld, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_waiting(monkeypatch)
    rows = b"".join(json.dumps(row).encode() + b"\n" for row in varied(360))
    server.dataset("acme/rows", {"a.jsonl": rows})
    server.cut[sha256(rows)] = 1_000  # every connection breaks half-way
    data = {"train": [{"source": "hf://datasets/acme/rows", "secretRef": secret(world, server)}]}
    context = world.open(world.task(data))
    with pytest.raises(StageError) as caught:
        prepare.run(context)
    assert caught.value.exit_code == ExitCode.STORAGE_UNAVAILABLE
    assert caught.value.message == "data.train[0]: hf://datasets/acme/rows/a.jsonl: the hub does not answer"
    assert caught.value.hint
    assert not context.storage.list(f"{context.task.run_uri}/")
    assert not [path for path in world.folder.rglob("a.jsonl") if path.is_file()], "half a file under the name of one"
    server.cut.clear()
    results, _ = prepare.run(world.open(world.task(data)))
    assert results.prepare is not None
    counts = results.prepare.rows
    assert counts.train + counts.validation + counts.test == 360


def test_a_hub_that_dies_in_the_middle_of_the_weights_is_unavailable_and_the_next_attempt_fetches_that_file_anew(
    world: PrepareWorld, server: HubServer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_waiting(monkeypatch)
    weights = sha256((tiny_model / "model.safetensors").read_bytes())
    server.model(OFFICIAL, tiny_model)
    server.cut[weights] = 1_000
    with pytest.raises(StageError) as caught:
        fetch_model(context_of(world, server))
    assert caught.value.exit_code == ExitCode.STORAGE_UNAVAILABLE
    assert f"hf://{OFFICIAL}/model.safetensors: the hub does not answer" in caught.value.message
    assert not [path for path in world.folder.rglob("model.safetensors") if path.is_file()]
    before = len(server.gets(weights))
    server.cut.clear()
    assert fetch_model(context_of(world, server)).digest == model_digest(tiny_model)
    assert [request.range for request in server.gets(weights)[before:]] == [""]


@pytest.mark.parametrize(
    ("path", "code", "says"),
    [
        ("acme/none", ExitCode.SOURCE_NOT_FOUND, "hf://datasets/acme/none does not exist"),
        ("acme/rows/nothing.jsonl", ExitCode.SOURCE_NOT_FOUND, "has no nothing.jsonl"),
        ("acme/rows@v9", ExitCode.SOURCE_NOT_FOUND, "has no revision v9"),
        ("acme/gated", ExitCode.ACCESS_DENIED, "is gated or private"),
        ("acme/vanishing", ExitCode.SOURCE_NOT_FOUND, "b.jsonl"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_named(
    world: PrepareWorld, server: HubServer, path: str, code: ExitCode, says: str
) -> None:
    server.dataset("acme/rows", {"a.jsonl": lines("a")})
    server.dataset("acme/gated", {"a.jsonl": lines("a")}, gated=True)
    server.dataset("acme/vanishing", {"a.jsonl": lines("a"), "b.jsonl": lines("b")})
    server.missing = {"b.jsonl"}
    source = {"source": f"hf://datasets/{path}", "secretRef": secret(world, server)}
    with pytest.raises(StageError) as caught:
        prepare.run(world.open(world.task({"train": [source]})))
    assert caught.value.exit_code == code
    assert caught.value.message.startswith("data.train[0]: hf://datasets/acme/")
    assert says in caught.value.message
    assert caught.value.hint
