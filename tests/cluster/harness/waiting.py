"""Wait for a condition with a deadline, so that no test sleeps for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NotInTime(AssertionError):
    """A condition did not become true before its deadline; the message says what was awaited and what was last seen."""


def wait_for(
    condition: Callable[[], T],
    deadline_s: float,
    what: str,
    *,
    poll_s: float = 0.1,
    ignore: tuple[type[Exception], ...] = (),
    context: Callable[[], str] | None = None,
) -> T:
    """Call ``condition`` until its result is true and return that result.

    Args:
        condition: what must become true (any truthy value).
        deadline_s: seconds after which waiting is a failure. Only an upper bound: choose it generously.
        what: completes the sentence "waited for ...".
        poll_s: seconds between two calls.
        ignore: exceptions of ``condition`` that mean "not yet".
        context: evaluated on failure only; its text ends the message (a log, a dump of status).

    Raises:
        NotInTime: the deadline passed.
    """
    end = time.monotonic() + deadline_s
    while True:
        last: object
        try:
            result = condition()
            if result:
                return result
            last = result
        except ignore as error:
            last = error
        if time.monotonic() >= end:
            tail = f"\n{context()}" if context else ""
            raise NotInTime(f"waited {deadline_s:g} s in vain for {what}; last seen: {last!r}{tail}")
        time.sleep(poll_s)
