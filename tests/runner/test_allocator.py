"""What PyTorch's allocator is told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from finetune_runner.allocator import EXPANDABLE, VARIABLE, prefer_expandable_segments


@pytest.mark.parametrize(
    ("before", "after"), [({}, EXPANDABLE), ({VARIABLE: "max_split_size_mb:512"}, "max_split_size_mb:512")]
)
def test_segments_grow_unless_somebody_says_otherwise(before: dict[str, str], after: str) -> None:
    prefer_expandable_segments(before)
    assert before == {VARIABLE: after}


HELP = """
import os, runpy, sys
sys.argv = ["finetune-runner", "--help"]
try:
    runpy.run_module("finetune_runner", run_name="__main__")
except SystemExit:
    print("torch" in sys.modules, os.environ["PYTORCH_CUDA_ALLOC_CONF"])
"""


def test_the_runners_command_says_so_before_torch_is_imported() -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    told = subprocess.run(
        [sys.executable, "-c", HELP], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert told.splitlines()[-1] == f"False {EXPANDABLE}"
