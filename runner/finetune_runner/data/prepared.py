"""The prepared splits in storage: where they are and that they are what prepare wrote."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Literal, cast, get_args

from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.data.row_file import RowFile, write_row_file
from finetune_runner.data.rows import Row, iter_rows
from finetune_runner.errors import StageError
from finetune_runner.storage import join

Split = Literal["train", "validation", "test", "replay", "out_of_domain"]
ROW_HASHES_PATH = "prepare/row-hashes.dat"
"""Path of the salted row hashes below the run's root."""
SPLITS: tuple[Split, ...] = get_args(Split)


def split_path(split: Split) -> str:
    """Path of a split below the run's root. Test lies apart: who may train need not be able to read it."""
    return "test/test.jsonl.gz" if split == "test" else f"prepare/{split}.jsonl.gz"


def load_manifest(context: StageContext) -> dict[str, Any]:
    """The prepared data's manifest: `files` (path -> sha256, rows) and digests."""
    return cast(
        dict[str, Any], json.loads(context.storage.read_bytes(join(context.task.run_uri, "prepare/manifest.json")))
    )


def iter_split(context: StageContext, split: Split) -> Iterator[Row]:
    """The rows of a split one at a time, verified against the manifest first; none when the job has no such split.

    Raises:
        StageError: INVALID_DATA when the file is not the one that prepare wrote; storage errors.
    """
    path = split_path(split)
    entry = load_manifest(context)["files"].get(path)
    if entry is None:
        return
    context.scratch.mkdir(parents=True, exist_ok=True)
    uri = join(context.task.run_uri, path)
    with context.storage.open_read(uri) as stream, TemporaryFile(dir=context.scratch) as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.seek(0)
        digest = hashlib.file_digest(copy, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise StageError(
                ExitCode.INVALID_DATA,
                f"{path} of run {context.task.job.run} was changed after stage prepare",
                "nobody may write below runs/; start a new run",
                f"sha256 {digest}, manifest says {entry['sha256']}",
            )
        copy.seek(0)
        yield from iter_rows(copy)


@contextmanager
def spooled(context: StageContext, split: Split) -> Iterator[RowFile]:
    """The rows of a large split, as often as they are wanted and one in memory at a time. See `iter_split`."""
    context.scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{split}-", dir=context.scratch) as name:
        write_row_file(Path(name) / "rows", iter_split(context, split))
        yield RowFile(Path(name) / "rows")


def load_split(context: StageContext, split: Split) -> list[Row]:
    """The rows of a small split. See `iter_split`."""
    return list(iter_split(context, split))
