"""The README's minute with one's own data: its very commands, with the real runner on a tiny model."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.runner.tiny import make_tiny_model, tickets

ROOT = Path(__file__).parents[2]
SECTION = "## Your own data in one minute"


def commands() -> list[list[str]]:
    """The commands of the section, without the prompt."""
    text = (ROOT / "README.md").read_text().split(SECTION)[1].split("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"^\$ (.+)$", text, re.MULTILINE)]


def test_every_command_of_the_section_does_what_it_says(tmp_path: Path) -> None:
    with (tmp_path / "tickets.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "category"])
        for row in tickets(400, seed=3):
            writer.writerow([row.messages[0]["content"], json.loads(row.messages[1]["content"])["category"]])
    model = make_tiny_model(tmp_path / "base-model")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    ran = {}
    for command in commands():
        assert command[0] == ".venv/bin/finetune"
        given = [str(model) if part == "path/to/base-model" else part for part in command[1:]]
        done = subprocess.run(
            [str(Path(sys.prefix) / "bin" / "finetune"), *given],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        ran[given[0]] = done
        assert "Traceback" not in done.stderr

    assert {"init", "validate", "run", "try", "approve"} <= set(ran)
    assert ran["init"].returncode == 0, ran["init"].stderr
    assert (tmp_path / "job.yaml").exists()
    assert ran["validate"].returncode == 0, ran["validate"].stdout
    assert ran["run"].returncode in (0, 3, 4), ran["run"].stderr
    assert "tickets-v1" in ran["run"].stdout
    assert ran["try"].returncode == 0, ran["try"].stderr
    # A tiny model may miss a gate; then nobody can approve it, and that is what is said.
    if ran["run"].returncode == 3:
        assert ran["approve"].returncode != 0
        assert "gate" in ran["approve"].stdout + ran["approve"].stderr
    else:
        assert ran["approve"].returncode == 0, ran["approve"].stderr
        assert "v1" in ran["approve"].stdout
