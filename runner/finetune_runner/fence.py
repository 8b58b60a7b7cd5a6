"""The fence of a stage: of several attempts only the newest may commit.

A pod on a node that lost its network can wake up hours later. Each attempt claims the next epoch, create-only, and
looks for a newer one before each commit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from uuid import uuid4

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.storage import Storage, join


@dataclass
class Fence:
    """Claim on `<run>/<stage>/epoch-<k>`."""

    storage: Storage
    run_uri: str
    stage: str
    epoch: int = 0
    """0 = not claimed."""
    identity: str = field(default_factory=lambda: uuid4().hex)

    def claim(self) -> int:
        """Claim the next epoch and return it."""
        epoch = max(
            (int(item.uri.rpartition("-")[2]) for item in self.storage.list(self._uri("")) if item.uri[-1].isdigit()),
            default=0,
        )
        while True:
            epoch += 1
            if self.storage.create(self._uri(epoch), json.dumps({"claimedBy": self.identity}).encode()):
                self.epoch = epoch
                return epoch

    def check(self) -> None:
        """Go on only as the newest attempt. Epochs have no gaps, so one look is enough.

        Raises:
            StageError: FENCED when a newer attempt exists.
        """
        if self.epoch and self.storage.exists(self._uri(self.epoch + 1)):
            raise StageError(
                ExitCode.FENCED,
                f"a newer attempt of stage {self.stage} has started; this one (epoch {self.epoch}) commits nothing",
                "nothing to do: the newer attempt goes on",
            )

    def _uri(self, epoch: int | str) -> str:
        return join(self.run_uri, self.stage, f"epoch-{epoch}")
