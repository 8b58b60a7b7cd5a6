"""What counts as a judgement of an answer: the same for `finetune init` and for stage prepare."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.job.judgement import judgement_of, says_true_or_false


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (True, True), (1, True), (1.0, True), ("true", True), (" True ", True), ("1", True), ("1.0", True),
        (False, False), (0, False), (-0.0, False), ("FALSE", False), ("0", False), ("0.0", False),
        (2, None), (-1, None), (0.5, None), (float("nan"), None), (float("inf"), None), ("yes", None), ("", None),
        ("10", None), ("spam", None), (None, None), ([], None), ({}, None), ([True], None),
    ],
)  # fmt: skip
def test_judgements(value: Any, wanted: bool | None) -> None:
    assert judgement_of(value) is wanted


@pytest.mark.parametrize(
    ("value", "sure"), [(True, True), (" false", True), (1, False), ("1", False), (0.0, False), (None, False)]
)
def test_a_number_may_be_a_class(value: Any, sure: bool) -> None:
    assert says_true_or_false(value) is sure
