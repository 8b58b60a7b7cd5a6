"""What the last versions of the adapter learned from, so that prepare can see whether today's test was among it."""

from __future__ import annotations

import gzip
import json
import logging
import re

from finetune_runner.context import StageContext
from finetune_runner.data.checking import Remark
from finetune_runner.data.checks.seen_before import SEEN_TABLE, input_digest
from finetune_runner.data.prepared import split_path
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.rows import Row
from finetune_runner.storage import join

log = logging.getLogger(__name__)

VERSIONS_LOOKED_AT = 3
_STOP_EVERY = 1000


def keep_seen_inputs(context: StageContext, store: RowStore) -> list[Remark]:
    """Keep digests of the inputs that the newest versions were trained on, for the check `seen_before`.

    Returns:
        A remark naming versions whose training data are not in storage any more.

    Raises:
        StageError: what storage raises.
    """
    store.database.execute(SEEN_TABLE)
    gone = []
    for version, uri in _newest(context):
        if _keep(context, store, version, join(uri, split_path("train"))):
            _keep(context, store, version, join(uri, split_path("replay")))
        else:
            gone.append(version)
    if not gone:
        return []
    message = (
        f"what {', '.join(gone)} was trained on is not in storage any more, or damaged: nobody can tell whether it "
        "knows test"
    )
    return [Remark("seenBefore", "info", message)]


def _newest(context: StageContext) -> list[tuple[str, str]]:
    """Name and run of the newest versions."""
    root = join(context.task.adapter_uri, "versions")
    found = {}
    for item in context.storage.list(f"{root}/"):
        match = re.fullmatch(r"v([1-9][0-9]*)/manifest\.json", item.uri.removeprefix(f"{root}/"))
        if match:
            found[int(match[1])] = item.uri
    newest = []
    for number in sorted(found, reverse=True)[:VERSIONS_LOOKED_AT]:
        try:
            newest.append((f"v{number}", str(json.loads(context.storage.read_bytes(found[number]))["run"]["uri"])))
        except (ValueError, KeyError, TypeError):
            log.warning("the manifest of v%d cannot be read: its training data are not compared", number)
    return newest


def _keep(context: StageContext, store: RowStore, version: str, uri: str) -> bool:
    if not context.storage.exists(uri):
        return False
    path = context.scratch / "prepare" / "earlier.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    context.storage.download_file(uri, path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if number % _STOP_EVERY == 0:
                    context.check_stop()
                digest = input_digest(Row.from_wire(json.loads(line)))
                store.database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, version))
    except (OSError, EOFError, ValueError, KeyError) as error:
        log.warning("%s, which %s was trained on, is damaged: %s", uri, version, error)
        return False
    finally:
        path.unlink(missing_ok=True)
    return True
