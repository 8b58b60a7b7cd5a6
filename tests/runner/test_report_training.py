"""What the report's page says of a training. Pure: no model is loaded."""

from __future__ import annotations

import re
from typing import Any

import pytest

from finetune_runner.report.curve import LEFT, RIGHT, WIDTH, loss_curve
from finetune_runner.report.page import ordinal
from finetune_runner.report.training import BAR_WIDTH, time_bar, training_section

TRAINED: dict[str, Any] = {
    "objective": "dpo",
    "learningRate": 5e-6,
    "epochs": 1.0,
    "scheduler": "cosine",
    "optimizer": "adamw_torch_fused",
    "globalBatchSize": 16,
    "steps": 240,
    "totalSteps": 300,
    "bestStep": 140,
    "stoppedBy": "earlyStopping",
    "initialValidationLoss": 2.2,
    "bestValidationLoss": 0.58,
    "strategy": "ddp",
    "microBatchSize": 4,
    "gradientAccumulation": 2,
    "tokensPerSecond": 5123.0,
    "labelledTokensPerSecond": 812.0,
    "modelFlopsUtilization": 0.413,
    "peakMemoryBytes": 31 * 2**30,
    "seconds": {"data": 6.0, "compute": 480.0, "optimizer": 24.0, "validation": 60.0, "checkpoint": 30.0},
}
POINTS = [
    {"step": 0, "validation_loss": 2.0, "train_loss": None},
    {"step": 50, "validation_loss": 1.0, "train_loss": 1.2},
    {"step": 100, "validation_loss": 1.1, "train_loss": 0.6},
]


def test_settings_speed_and_what_was_kept_are_on_the_page() -> None:
    page = training_section(TRAINED)
    for words in (
        "<td>dpo</td>",
        "5e-06 at most, cosine, adamw_torch_fused",
        "240 of 300, 16 examples each, stopped early",
        "step 140, validation loss 0.58 (untuned 2.2)",
        "ddp, micro-batch 4 x 2",
        "5,123 tokens/s, 812 of them with a loss",
        "41.3% of the GPUs",
        "31.0 GiB",
    ):
        assert words in page


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"modelFlopsUtilization": None}, "MFU"),
        ({"tokensPerSecond": 0.0}, "tokens/s"),
        ({"peakMemoryBytes": 0}, "peak memory"),
        ({"learningRate": None}, "learning rate"),
        ({"seconds": {}}, "<svg"),
    ],
)
def test_what_is_not_known_is_not_on_the_page(changes: dict[str, Any], gone: str) -> None:
    assert gone in training_section(TRAINED)
    assert gone not in training_section(TRAINED | changes)


def test_the_bar_is_as_wide_as_its_parts() -> None:
    drawn = time_bar(TRAINED["seconds"])
    widths = [float(found) for found in re.findall(r'<rect x="[0-9.]+" y="0" width="([0-9.]+)"', drawn)]
    assert sum(widths) == pytest.approx(BAR_WIDTH, abs=0.3)
    assert max(widths) == pytest.approx(BAR_WIDTH * 0.8, abs=0.1)
    assert "forward and backward 80% (480.0 s)" in drawn
    # A part that took no time has no line in the legend.
    assert "checkpoints" not in time_bar(TRAINED["seconds"] | {"checkpoint": 0.0}).split("legend", 1)[1]


@pytest.mark.parametrize(("kept", "share", "anchor"), [(0, 0.0, "start"), (100, 1.0, "end")])
def test_the_kept_step_is_marked_inside_the_picture(kept: int, share: float, anchor: str) -> None:
    drawn = loss_curve(POINTS, kept=kept)
    x = round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)
    assert f'<line x1="{x}" x2="{x}"' in drawn
    assert f'text-anchor="{anchor}">kept: step {kept}' in drawn
    assert "kept" not in loss_curve(POINTS)


@pytest.mark.parametrize(
    ("count", "words"), [(1, "first"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st")]
)
def test_ordinals(count: int, words: str) -> None:
    assert ordinal(count) == words
