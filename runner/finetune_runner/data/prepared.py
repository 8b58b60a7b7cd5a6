"""The prepared splits in storage: where they are and that they are what prepare wrote."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, cast, get_args

from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.data.rows import Row, read_rows
from finetune_runner.errors import StageError
from finetune_runner.storage import join

Split = Literal["train", "validation", "test", "replay", "out_of_domain"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_path(split: Split) -> str:
    """Path of a split below the run's root. Test lies apart: who may train need not be able to read it."""
    return "test/test.jsonl.gz" if split == "test" else f"prepare/{split}.jsonl.gz"


def load_manifest(context: StageContext) -> dict[str, Any]:
    """The prepared data's manifest: `files` (path -> sha256, rows) and digests."""
    return cast(
        dict[str, Any], json.loads(context.storage.read_bytes(join(context.task.run_uri, "prepare/manifest.json")))
    )


def load_split(context: StageContext, split: Split) -> list[Row]:
    """The rows of a split, verified against the manifest; empty when the job has no such split.

    Raises:
        StageError: INVALID_DATA when the file is not the one that prepare wrote; storage errors.
    """
    path = split_path(split)
    entry = load_manifest(context)["files"].get(path)
    if entry is None:
        return []
    data = context.storage.read_bytes(join(context.task.run_uri, path))
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{path} of run {context.task.job.run} was changed after stage prepare",
            "nobody may write below runs/; start a new run",
            f"sha256 {digest}, manifest says {entry['sha256']}",
        )
    return read_rows(data)
