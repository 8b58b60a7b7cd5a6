"""A process that fills a model cache from a hub, for tests that race and kill it: ENDPOINT REPO CACHE SCRATCH.

Prints `waiting` when it waits for another, and at last the digest of the model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from finetune_runner import hub
from finetune_runner.model_cache.cache import ModelCache
from finetune_runner.model_cache.files import DigestMemory, ModelFile
from finetune_runner.model_cache.lock import Timing
from finetune_runner.model_cache.meter import Hooks

TIMING = Timing(beat_s=0.1, stale_s=2.0, poll_s=0.05)


def main(endpoint: str, repo: str, cache: str, scratch: str) -> str:
    """Fill the cache and return the digest."""
    account = hub.Account(None, endpoint)
    commit = hub.resolve_revision(repo, "main", "model", account)
    told: set[str] = set()

    def report(phase: str, *, percent: float, eta_seconds: float | None) -> None:
        word = phase.split()[0]
        if word not in told:
            told.add(word)
            print(word, flush=True)

    def fetch(files: Sequence[ModelFile], folder: Path, got: Callable[[int], None]) -> None:
        hub.download_files(repo, commit, [file.name for file in files], "model", folder, account, got)

    made = ModelCache(
        Path(cache),
        DigestMemory(Path(scratch)),
        Hooks(lambda: datetime.now(UTC), report, lambda: None, time.sleep),
        timing=TIMING,
    ).ensure(
        f"hub/models--{repo.replace('/', '--')}/snapshots/{commit}",
        f"hf://{repo}",
        hub.list_files(repo, commit, "model", account),
        fetch,
    )
    return made.digest


if __name__ == "__main__":
    print(main(*sys.argv[1:]), flush=True)
