"""The example's base model, which demos and tests share in one cache: who comes second waits for the first."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.harness.waiting import wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "support-triage"
DEADLINE_S = 120


def waits_for_a_lock(pid: int) -> bool:
    """Whether the kernel lists the process as one that waits (proc_locks(5))."""
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return any("->" in line and str(pid) in line.split() for line in lines)


def test_two_at_once_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    for variable, value in (("OMP_NUM_THREADS", "1"), ("TOKENIZERS_PARALLELISM", "false"), ("DS_ACCELERATOR", "cpu")):
        monkeypatch.setenv(variable, value)  # the script sets them where they are not set
    script = importlib.import_module("make_base_model")
    output = tmp_path / "base-model"
    first = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(first, fcntl.LOCK_EX)
        command = [sys.executable, str(EXAMPLE / "make_base_model.py"), "--output", str(output)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            wait_for(lambda: waits_for_a_lock(second.pid), DEADLINE_S, "the second to wait")
            output.mkdir()
            (output / script.RECIPE_FILE).write_text(json.dumps({"digest": script.recipe_digest(7)}))
            fcntl.flock(first, fcntl.LOCK_UN)
            said, _ = second.communicate(timeout=DEADLINE_S)
    finally:
        os.close(first)
    assert said == f"{output} already holds this base model\n"
    assert second.returncode == 0
