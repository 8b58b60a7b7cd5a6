"""The body of a push: a Progress, or a refusal that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.stages import Progress
from finetune_operator.progress.parse import parse_progress
from finetune_operator.progress.refusal import Refused

GOOD = {"stage": "train", "attempt": 1, "percent": 42, "step": 3, "etaSeconds": 60.5, "loss": 1.25}


def test_a_progress() -> None:
    assert parse_progress(json.dumps(GOOD).encode()) == Progress(
        stage="train", attempt=1, percent=42.0, step=3, eta_seconds=60.5, loss=1.25
    )


@pytest.mark.parametrize(
    ("newer", "kept"),
    [
        ({"gpuTemperatureCelsius": 71, "ranks": [{"rank": 0}]}, {}),
        ({"total_steps": 3}, {}),  # no name of the wire
        ({"validationMetrics": {"f1": 0.5, "aNewMetric": 0.1}}, {"validation_metrics": {"f1": 0.5, "aNewMetric": 0.1}}),
    ],
)
def test_what_a_newer_runner_says_besides_is_passed_over(newer: dict[str, Any], kept: dict[str, Any]) -> None:
    expected = parse_progress(json.dumps(GOOD).encode()).model_copy(update=kept)
    assert parse_progress(json.dumps(GOOD | newer).encode()) == expected


def test_what_an_older_runner_does_not_say_has_a_default() -> None:
    assert parse_progress(b'{"stage": "train"}') == Progress(stage="train")


BAD = [
    (b"", "not JSON"),
    (b"\xff\xfe\x00", "not JSON"),
    (b"percent=3", "not JSON"),
    (b'{"stage":"train"', "not JSON"),
    (b"[" * 4000, "not JSON"),
    (b"[1]", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"percent": 3}', "stage: Field required"),
    (b'{"stage": "cook"}', "stage: Input should be 'prepare'"),
    (b'{"stage": "train", "percent": NaN}', "NaN is not a number of JSON"),
    (b'{"stage": "train", "loss": 1e999}', "loss: Input should be a finite number"),
    (b'{"stage": "train", "percent": 101}', "percent: Input should be less than or equal to 100"),
    (b'{"stage": "train", "step": -1}', "step: Input should be greater"),
    (b'{"stage": "train", "step": 1e30}', "step:"),
    (b'{"stage": "train", "step": "3"}', "step: Input should be a valid integer"),
    (b'{"stage": "train", "phase": "\\u001b[2J"}', "phase: String should match"),
    (b'{"stage": "train", "updatedAt": "yesterday"}', "updatedAt: Value error, not a time of RFC 3339"),
]


@pytest.mark.parametrize(("body", "told"), BAD)
def test_refusals_name_the_field(body: bytes, told: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_progress(body)
    assert (refused.value.status, refused.value.reason) == (400, "invalid")
    assert told in refused.value.message
    assert "\n" not in refused.value.message


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused_or_fit_the_status(body: bytes) -> None:
    try:
        progress = parse_progress(body)
    except Refused:
        return
    assert Progress.from_wire(progress.to_wire()) == progress
