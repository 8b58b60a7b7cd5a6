"""Counting how often a test split has judged: a split that is asked too often stops being a test."""

from __future__ import annotations

import json

from finetune_runner.context import StageContext
from finetune_runner.storage import join


def count_test_use(context: StageContext) -> int:
    """Note this run's use of the test split, once per run, and return which use it is (1 = the first)."""
    task, storage = context.task, context.storage
    digest = task.results.prepare.test_digest if task.results.prepare is not None else "unknown"
    folder = join(task.adapter_uri, "tests", digest)
    who = {"uid": task.job.uid, "run": task.job.run}
    uses = storage.list(f"{folder}/use-")
    for item in uses:
        if json.loads(storage.read_bytes(item.uri)) == who:
            return int(item.uri.rpartition("-")[2])
    number = max((int(item.uri.rpartition("-")[2]) for item in uses), default=0) + 1
    while not storage.create(f"{folder}/use-{number}", json.dumps(who).encode()):
        number += 1
    return number
