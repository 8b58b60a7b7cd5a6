"""The page about failures knows every cause and every exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE
from finetune_operator.decide.causes import registry

PAGE = (Path(__file__).parents[2] / "docs" / "failures.md").read_text()


@pytest.mark.parametrize("cause", sorted(registry()))
def test_every_cause_is_documented(cause: str) -> None:
    assert f"| {cause} |" in PAGE


@pytest.mark.parametrize(("code", "cause"), CAUSE_OF_EXIT_CODE.items())
def test_every_exit_code_is_documented(code: int, cause: str) -> None:
    assert f"| {int(code)} | {cause} |" in PAGE
