"""Short commands of the runner that answer with one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from finetune_cli.errors import CliError, CliExit


def ask_runner(module: str, arguments: list[str], what: str) -> dict[str, Any]:
    """Run `python -m finetune_runner.<module>` and parse the last line of its output.

    Raises CliError with the last words of the process when it gives no answer.
    """
    answer = subprocess.run(
        [sys.executable, "-m", f"finetune_runner.{module}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    lines = answer.stdout.strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    said = (answer.stderr.strip() or answer.stdout.strip() or "no output").splitlines()
    missing = any("No module named" in line for line in said[-3:])
    raise CliError(
        f"{what} failed with exit code {answer.returncode}: {said[-1]}",
        "Install the runner's dependencies: pip install 'finetune-operator[runner]'." if missing else "",
        CliExit.FAILED,
    )
