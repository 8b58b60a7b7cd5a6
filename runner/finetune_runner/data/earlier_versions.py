"""What earlier versions learned from, so that prepare can see whether today's test was among it.

Looked at are the newest versions of this adapter, the one now released, and the one training starts from.

Not part of what is cached with prepared data: versions come and go while the data stay.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace

from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.data.bytes_in import DAMAGED
from finetune_runner.data.checking import Remark, run_checks
from finetune_runner.data.checks.seen_before import JUDGED_ON, SEEN_TABLE, input_digest
from finetune_runner.data.outcome import Prepared, check_to_wire, remark_to_wire
from finetune_runner.data.prepared import split_path
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.rows import Row
from finetune_runner.data.shingles import earlier_digests
from finetune_runner.errors import StageError
from finetune_runner.storage import join

log = logging.getLogger(__name__)

VERSIONS_LOOKED_AT = 3
_STOP_EVERY = 1000
_UNREADABLE = (*DAMAGED, ValueError, LookupError, TypeError, AttributeError)
"""What reading a manifest or rows that are not what was written raises."""


def with_earlier_versions(context: StageContext, prepared: Prepared) -> Prepared:
    """The prepared data with what is to say about earlier versions; their splits are in the run already.

    Raises:
        StageError: INVALID_DATA when data.checks.seenBefore is `fail` and a version knows test; storage errors.
    """
    spec = context.task.spec
    if spec.data.checks.seen_before == "ignore":
        return prepared
    with RowStore(context.scratch / "prepare" / "versions.sqlite") as store:
        remarks = _keep_seen_inputs(context, store)
        for split in JUDGED_ON:
            if split_path(split) in prepared.files:
                for row in _rows(context, join(context.task.run_uri, split_path(split))):
                    store.add(split, row, f"{split} row {row.id}")
        runs = list(run_checks("versions", store, spec))
    said = [*remarks, *(remark for run in runs for remark in run.remarks)]
    return replace(
        prepared,
        checks=[*prepared.checks, *(check_to_wire(run) for run in runs)],
        remarks=[*prepared.remarks, *(remark_to_wire(remark) for remark in remarks)],
        findings=[*prepared.findings, *(remark.finding.to_wire() for remark in said)],
    )


def _keep_seen_inputs(context: StageContext, store: RowStore) -> list[Remark]:
    """Keep digests of the inputs that earlier versions were trained on, for the check `seen_before`.

    Returns:
        A remark naming versions whose training data are not in storage any more, or damaged.

    Raises:
        StageError: what storage raises, but for what is not there.
    """
    store.database.execute(SEEN_TABLE)
    gone = []
    for version, uri in _compared(context).items():
        run = _run_of(context, version, uri)
        if run and _keep(context, store, version, join(run, split_path("train"))):
            replay = join(run, split_path("replay"))
            if not context.storage.exists(replay) or _keep(context, store, version, replay):
                continue
        gone.append(version)
    if not gone:
        return []
    message = (
        f"what {', '.join(gone)} was trained on is not in storage any more, or damaged: nobody can tell whether it "
        "knows test"
    )
    return [Remark("seenBefore", "warning", message)]


def _compared(context: StageContext) -> dict[str, str]:
    """The URI of each version looked at, by its name; the one training starts from may be another adapter's."""
    task = context.task
    root = join(task.adapter_uri, "versions")
    found = {}
    for item in context.storage.list(f"{root}/"):
        match = re.fullmatch(r"v([1-9][0-9]*)/manifest\.json", item.uri.removeprefix(f"{root}/"))
        if match:
            found[int(match[1])] = item.uri.removesuffix("/manifest.json")
    compared = {f"v{number}": found[number] for number in sorted(found, reverse=True)[:VERSIONS_LOOKED_AT]}
    for version in (task.incumbent, task.warm_start):
        if version is not None and version.uri.rstrip("/") not in compared.values():
            compared[version.version] = version.uri.rstrip("/")
    return compared


def _run_of(context: StageContext, version: str, uri: str) -> str:
    """The run that made a version; empty when its manifest does not say."""
    try:
        return str(json.loads(context.storage.read_bytes(join(uri, "manifest.json")))["run"]["uri"])
    except StageError as error:
        if error.exit_code != ExitCode.SOURCE_NOT_FOUND:
            raise
        log.warning("%s is not in storage any more: %s", version, error)
    except _UNREADABLE as error:
        log.warning("the manifest of %s cannot be read: %s", version, error)
    return ""


def _keep(context: StageContext, store: RowStore, version: str, uri: str) -> bool:
    """Keep the inputs of a split; False when it is not there, or not readable to its end."""
    try:
        for row in _rows(context, uri):
            inputs = (input_digest(row), *earlier_digests(row))
            store.database.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", ((each, version) for each in inputs))
    except StageError as error:
        if error.exit_code != ExitCode.SOURCE_NOT_FOUND:
            raise
        return False
    except _UNREADABLE as error:
        log.warning("%s, which %s was trained on, is damaged: %s", uri, version, error)
        return False
    return True


def _rows(context: StageContext, uri: str) -> Iterator[Row]:
    """The rows of a split in storage, one at a time."""
    path = context.scratch / "prepare" / "earlier.jsonl.gz"
    context.storage.download_file(uri, path)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if number % _STOP_EVERY == 0:
                context.check_stop()
            yield Row.from_wire(json.loads(line))
    path.unlink()
