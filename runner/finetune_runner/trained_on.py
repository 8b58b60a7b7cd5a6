"""Which versions were trained on these rows: `python -m finetune_runner.trained_on --rows FILE --storage URI`.

FILE holds rows in any layout a job takes. URI is a storage root, or a part of it that holds whole adapters. Prints one
JSON object: rows read, the versions that have one with the splits and first positions, the versions that have none, and
those that keep no row hashes. Exit code 0, or that of the problem.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_api.common import SecretRef
from finetune_api.common import Storage as StorageSpec
from finetune_api.exit_codes import ExitCode
from finetune_api.job.data import Columns
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.command_context import command_context
from finetune_runner.context import StageContext
from finetune_runner.data.loading import Wanted, fetch, load
from finetune_runner.data.row_hashes import ROW_HASHES, find_hashes, known_salt, row_hash
from finetune_runner.data.rows import Row
from finetune_runner.errors import StageError
from finetune_runner.evaluation.version import MANIFEST
from finetune_runner.storage import join

_VERSION = re.compile(rf"(?P<adapter>.+/(?P<namespace>[^/]+)/(?P<name>[^/]+))/versions/v(?P<number>\d+)/{MANIFEST}")
_POSITIONS_SHOWN = 5


def trained_on(
    context: StageContext, rows: Path, adapters: Iterable[str] = (), columns: Columns | None = None
) -> dict[str, Any]:
    """Look the rows of a file up in every version below the storage root.

    Args:
        context: whose storage is looked through.
        rows: a data file or a folder of them.
        adapters: only versions of adapters of these names; empty = all.
        columns: names of the columns where they differ from the layout's own.

    Raises:
        StageError: INVALID_DATA for rows that cannot be read or a damaged version; SOURCE_NOT_FOUND without any
            version; storage errors.
    """
    wanted = set(adapters)
    positions: dict[str, str] = {}
    asked_by: dict[str, str] = {}

    def keep(row: Row, origin: str) -> None:
        positions.setdefault(row.content_key, origin)
        # A judgement may be written in many ways, and the same answer may be there without one.
        labels = {None, True, False} if row.rejected is None else {row.label}
        for label in labels:
            asked_by.setdefault(replace(row, label=label).content_key, row.content_key)

    asked = Wanted(
        "rows",
        f"file://{rows.absolute()}",
        columns=columns or Columns(),
        columns_hint="rename the columns, or say --columns prompt=NAME,completion=NAME",
    )
    loaded = load(context, fetch(context, asked, context.scratch), keep)
    storage, root = context.storage, context.task.storage.uri
    found: list[dict[str, Any]] = []
    without: list[str] = []
    unknown: list[str] = []
    for item in storage.list(f"{root.rstrip('/')}/"):
        match = _VERSION.fullmatch(item.uri)
        if match is None or (wanted and match["name"] not in wanted):
            continue
        name = f"{match['namespace']}/{match['name']}@v{match['number']}"
        uri = item.uri.removesuffix(f"/{MANIFEST}")
        salt = known_salt(storage, match["adapter"])
        if salt is None or not storage.exists(join(uri, ROW_HASHES)):
            unknown.append(name)
            continue
        hashes = {row_hash(salt, key): own for key, own in asked_by.items()}
        counts: Counter[str] = Counter()
        first: list[str] = []
        with storage.open_read(join(uri, ROW_HASHES)) as stream:
            for split, hashed in find_hashes(stream, hashes, join(uri, ROW_HASHES)):
                counts[split] += 1
                if len(first) < _POSITIONS_SHOWN:
                    first.append(f"{positions[hashes[hashed]]} ({split})")
        if counts:
            found.append({"version": name, "uri": uri, "rows": dict(counts), "first": first})
        else:
            without.append(name)
    if not found and not without and not unknown:
        raise StageError(
            ExitCode.SOURCE_NOT_FOUND,
            f"{root} has no version" + (f" of {', '.join(sorted(wanted))}" if wanted else ""),
            "name the storage root that the jobs wrote to (status.resolved.storage.uri)",
        )
    return {"rows": loaded.rows, "differentRows": len(positions), "trainedOn": found, "notTrainedOn": without} | {
        "unknown": unknown
    }


def _spec() -> FineTuneJobSpec:
    """A job that nobody runs: reading rows needs a context."""
    return FineTuneJobSpec.from_wire(
        {
            "model": {"source": "file:///none"},
            "data": {"train": [{"source": "file:///none"}]},
            "output": {"adapterRef": {"name": "none"}},
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Look the rows up and print the answer."""
    parser = argparse.ArgumentParser(prog="finetune_runner.trained_on", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, metavar="FILE", help="the rows asked for")
    parser.add_argument("--storage", required=True, metavar="URI", help="storage root: s3://... or file://...")
    parser.add_argument("--endpoint", metavar="URL", help="of an S3-compatible service")
    parser.add_argument("--secret", metavar="NAME", help="folder of credentials below $FINETUNE_SECRETS")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME", help="only this adapter (repeatable)")
    parser.add_argument("--columns", metavar="JSON", help="names of columns, as data.train[].columns")
    args = parser.parse_args(arguments)
    columns = Columns.from_wire(json.loads(args.columns)) if args.columns else None
    storage = StorageSpec(
        uri=args.storage, endpoint=args.endpoint, secret_ref=SecretRef(name=args.secret) if args.secret else None
    )
    with tempfile.TemporaryDirectory(prefix="finetune-trained-on-") as scratch:
        try:
            context = command_context(_spec(), Path(scratch), storage=storage)
            answer = trained_on(context, args.rows, args.adapter, columns)
        except StageError as error:
            print(json.dumps({"problem": {"message": error.message, "hint": error.hint}}, ensure_ascii=False))
            return int(error.exit_code)
    print(json.dumps(answer, ensure_ascii=False))
    return int(ExitCode.SUCCEEDED)


if __name__ == "__main__":
    sys.exit(main())
