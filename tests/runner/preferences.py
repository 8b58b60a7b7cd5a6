"""Preference data for the tiny model: of two answers with a ticket's category, the one that is JSON is the better."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_runner.data.prepared import split_path
from finetune_runner.data.rows import Parsed, Row, make_row, write_rows
from tests.runner.tiny import World, make_world, tickets


def pairs(count: int, seed: int) -> list[Row]:
    """Pairs of JSON and of the same answer in words."""
    return [
        make_row(Parsed(row.messages, rejected=f"category is {json.loads(row.answer)['category']}"))
        for row in tickets(count, seed)
    ]


def judged(count: int, seed: int, wanted_share: float = 0.5) -> list[Row]:
    """Answers judged one by one."""
    chance = random.Random(seed)
    rows = []
    for row in pairs(count, seed):
        wanted = chance.random() < wanted_share
        answer = row.answer if wanted else row.rejected
        messages = (*row.prompt, {"role": "assistant", "content": answer})
        rows.append(make_row(Parsed(messages, label=wanted)))
    return rows


def preference_world(
    folder: Path, model: Path, objective: str, rows: Any = pairs, spec: dict[str, Any] | None = None, **plan: Any
) -> World:
    """A run whose stage prepare is done, over 96 training and 32 validation rows."""
    spec = spec or {}
    method = {"type": "lora", "rank": 8, "alpha": 16, "objective": objective} | spec.pop("method", {})
    training = {"learningRate": 5e-3, "globalBatchSize": 8, "maxLength": 128, "earlyStopping": {"patience": 0}}
    training |= spec.pop("training", {})
    defaults = {"total_steps": 24, "eval_steps": 8, "micro_batch_size": 4, "gradient_accumulation": 2}
    world = make_world(folder, model, spec={"method": method, "training": training, **spec}, **{**defaults, **plan})
    return with_rows(world, rows(96, 3), rows(32, 4))


def with_rows(world: World, train: list[Row], validation: list[Row]) -> World:
    """The same run with other rows to train and validate on."""
    root = world.folder / "store" / "team" / world.adapter / "runs" / world.uid / str(world.run)
    manifest = json.loads((root / "prepare" / "manifest.json").read_text())
    for name, rows in (("train", train), ("validation", validation)):
        path = root / split_path(name)  # type: ignore[arg-type]
        path.write_bytes(write_rows(rows))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest["files"][split_path(name)] = {"sha256": digest, "rows": len(rows)}  # type: ignore[arg-type]
    (root / "prepare" / "manifest.json").write_text(json.dumps(manifest))
    return replace(world)
