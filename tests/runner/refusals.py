"""What a guard says, so that a table holds what it refuses beside what it lets pass."""

from __future__ import annotations

from collections.abc import Callable

from finetune_runner.errors import StageError


def refusal(guard: Callable[[], object]) -> str:
    """The message of the StageError that the guard raises; empty when it lets pass."""
    try:
        guard()
    except StageError as error:
        return error.message
    return ""
