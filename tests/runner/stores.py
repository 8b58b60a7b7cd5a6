"""Stores and tasks for the tests of storage, prepare and the process around a stage."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.stages import Finding, Progress, StageTask
from finetune_runner.context import Environment, StageContext, open_context
from finetune_runner.data.loading import Wanted, fetch, load
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.row_store import Example, RowStore
from finetune_runner.data.rows import Row
from tests.cluster.harness.s3 import Identity, S3Server

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def write_secret(folder: Path, name: str, identity: Identity) -> dict[str, str]:
    """A Secret as a volume mounts it; returns the reference."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "AWS_ACCESS_KEY_ID").write_text(identity.access_key + "\n")
    (folder / name / "AWS_SECRET_ACCESS_KEY").write_text(identity.secret_key)
    return {"name": name}


def s3_storage(server: S3Server, folder: Path, prefix: str = "", identity: Identity | None = None) -> dict[str, Any]:
    """`storage` of a spec for a fresh bucket of a server, with its Secret below `folder/secrets`."""
    return {
        "uri": f"s3://{server.make_bucket()}{prefix}",
        "endpoint": server.endpoint,
        "secretRef": write_secret(folder / "secrets", "store", identity or server.writer),
    }


@dataclass
class PrepareWorld:
    """A folder with data files, a model and a store."""

    folder: Path
    model: str
    storage: dict[str, Any] = field(default_factory=dict)
    said: list[Progress] = field(default_factory=list)

    def write(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Write JSON lines and return their source."""
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"file://{self.folder}/{name}"

    def task(self, data: dict[str, Any], stage: str = "prepare", **spec: Any) -> StageTask:
        """A task with this `data` section."""
        return StageTask.from_wire(
            {
                "stage": stage,
                "job": {"namespace": "team", "name": "job", "uid": "uid-1", "run": 1},
                "adapter": "triage",
                "attempt": 1,
                "storage": self.storage or {"uri": f"file://{self.folder}/store"},
                "spec": {
                    "model": {"source": self.model},
                    "data": data,
                    "output": {"adapterRef": {"name": "triage"}},
                    **spec,
                },
                "createdAt": "2026-03-01T12:00:00Z",
            }
        )

    def open(self, task: StageTask) -> StageContext:
        """The context of a task."""
        scratch = self.folder / "scratch"
        environ = {"FINETUNE_SCRATCH": str(scratch), "FINETUNE_SECRETS": str(self.folder / "secrets")}
        return open_context(
            task,
            Environment.of(environ, str(scratch)),
            clock=lambda: NOW,
            progress=self.said.append,
            stop=threading.Event(),
        )


@dataclass
class LoadedRows:
    """All that a source gave, in memory."""

    examples: list[Example]
    format: str
    finding: Finding
    files: list[dict[str, Any]]


def load_rows(context: StageContext, wanted: Wanted, folder: Path) -> LoadedRows:
    """Fetch and read a source."""
    examples: list[Example] = []
    fetched = fetch(context, wanted, folder)
    loaded = load(context, fetched, lambda row, origin: examples.append(Example(row, origin)))
    assert loaded.rows == len(examples)
    return LoadedRows(examples, loaded.format, loaded.finding, fetched.files)


def lines(*rows: Any) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def messages_of(loaded: LoadedRows) -> list[list[str]]:
    """Role and text of every message, by row."""
    return [[f"{m['role']}: {m['content']}" for m in example.row.messages] for example in loaded.examples]


def store_of(splits: Mapping[str, Sequence[Row]], path: Path | None = None) -> RowStore:
    """A store with these rows; the origin of a row is its split and position there."""
    store = RowStore(path)
    for split, rows in splits.items():
        for position, row in enumerate(rows, start=1):
            store.add(split, row, f"{split} row {position}")
    return store


def cluster_keys(rows: Sequence[Row]) -> list[str]:
    """The key of each row's cluster."""
    with store_of({"pool": rows}) as store, NearDuplicates(store) as near:
        near.set_clusters("pool")
        return [key for (key,) in store.database.execute("SELECT cluster FROM rows ORDER BY number")]


def leaking(rows: Sequence[Row], held_out: Sequence[Row]) -> list[int]:
    """Indexes of the rows whose inputs are near-duplicates of a held-out row's."""
    with store_of({"train": rows, "test": held_out}) as store, NearDuplicates(store) as near:
        return [number - 1 for number, _ in near.leaks("train", ["test"])]


def exchange(prompt: str, answer: str) -> dict[str, str]:
    """A row of format promptCompletion."""
    return {"prompt": prompt, "completion": answer}


_SUBJECTS = ("invoice", "parcel", "password", "refund", "charger", "receipt", "login", "box", "screen", "contract")
_VERBS = ("is missing", "arrived broken", "does not work", "was sent twice", "is too late", "looks wrong")
_WISHES = (
    "please call me back",
    "what shall I do",
    "I want my money",
    "send another",
    "can you look",
    "close my account",
)
LABELS = ("billing", "shipping", "access")


def varied(count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows that are no near-duplicates of each other."""
    rows = []
    for number in range(start, start + count):
        subject, verb = _SUBJECTS[number % 10], _VERBS[number // 10 % 6]
        wish = _WISHES[number // 60 % 6]
        rows.append(exchange(f"Case {number}: the {subject} {verb}, {wish} by day {number * 7}.", LABELS[number % 3]))
    return rows
