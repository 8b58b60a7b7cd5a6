"""kopf as informer and process frame only: settings under which it never gives up and writes nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import kopf

from finetune_operator.builders.names import MANAGED_BY, OPERATOR

REQUEST_TIMEOUT_S = 30.0
LARGEST_BACKOFF_S = 30.0
MANAGED_SELECTOR = f"{MANAGED_BY}={OPERATOR}"


@dataclass(frozen=True)
class EndlessBackoff:
    """Delays between tries of a request: doubling, with jitter, for ever. kopf iterates it anew for every request."""

    first_s: float = 1.0
    largest_s: float = LARGEST_BACKOFF_S

    def __iter__(self) -> Iterator[float]:
        delay_s = self.first_s
        while True:
            yield delay_s * random.uniform(0.5, 1.5)  # noqa: S311
            delay_s = min(self.largest_s, delay_s * 2)


def configure(settings: kopf.OperatorSettings) -> None:
    """Fill kopf's settings in."""
    settings.process.ultimate_exiting_timeout = None
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 70
    settings.watching.chunk_size = 500
    settings.watching.label_selectors["batch", "v1", "jobs"] = MANAGED_SELECTOR
    settings.watching.label_selectors["", "v1", "pods"] = MANAGED_SELECTOR
    # No worker limit: with indexes a limit below the number of objects never gets past the start.
    settings.queueing.worker_limit = None
    settings.queueing.idle_timeout = 1.0
    settings.networking.request_timeout = REQUEST_TIMEOUT_S
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = EndlessBackoff()
    settings.execution.max_workers = 1
