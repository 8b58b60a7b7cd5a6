"""Why a push is refused: an HTTP status, a word for the metrics, a sentence for whoever reads the runner's log."""

from __future__ import annotations


class Refused(Exception):
    """The push is not taken. `reason` comes from a small closed set: it is a label of a metric."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        """`retry_after_s` goes into the header Retry-After."""
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
