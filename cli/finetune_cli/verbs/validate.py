"""Check a YAML and its data: every problem at once, with its line and its fix.

Needs no cluster and no model, and judges like the API server. Rows are checked when the YAML names local files, or
with --data.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune_api.validation import validate_document
from finetune_api.wording import counted
from finetune_cli.errors import CliExit
from finetune_cli.jobfile import Overrides, load_document, missing_files, read_text
from finetune_cli.options import add_output
from finetune_cli.render.machine import print_machine
from finetune_cli.runner_process import ask_runner

WORLD = "local"
EXAMPLES = """
examples:
  finetune validate finetunejob.yaml
  finetune validate finetunejob.yaml --data my-tickets.csv
  finetune validate finetunejob.yaml -o json

exit codes:
  0    nothing is wrong
  2    there are problems
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML of a FineTuneJob (or GPUPool, Adapter)")
    parser.add_argument("--data", metavar="PATH", help="check the rows of this file or folder instead of data.train")
    parser.add_argument("--skip-data", action="store_true", help="check the YAML only")
    add_output(parser)


def _check_data(file: Path, data: str | None) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Problems of the job's local data, and the whole report; none when the job has no local data."""
    document, _ = load_document(file, Overrides(data=data, name="check"))
    sources = [document["spec"]["data"]["train"][0]["source"]]
    missing = [(field, path) for field, path in missing_files(document) if field != "spec.model.source"]
    if missing:
        fix = "Correct the path, or name your own file with --data."
        return [{"path": field, "message": f"there is no {path}", "fix": fix} for field, path in missing], None
    if not any(source.startswith("file://") for source in sources):
        return [], None
    with tempfile.TemporaryDirectory(prefix="finetune-validate-") as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(document), encoding="utf-8")
        report = ask_runner("check_data", ["--job", str(job)], "checking the data")
    problems = [
        {"path": p["field"], "message": p["message"].removeprefix(p["field"]).lstrip(" :"), "fix": p["hint"]}
        for p in report["problems"]
    ]
    return problems, report


def _print_table(file: Path, problems: list[dict[str, Any]], report: dict[str, Any] | None) -> None:
    for problem in problems:
        line = f":{problem['line']}" if "line" in problem else ""
        print(f"{file}{line}: {problem['path'] or 'document'} {problem['message']}")
        if problem["fix"]:
            print(f"    fix: {problem['fix']}")
    if report is not None:
        for finding in report["findings"]:
            print(f"{finding['severity']}: {finding['check']}: {finding['message']}")
        if report["rows"]:
            print("rows: " + ", ".join(f"{count} {name}" for name, count in report["rows"].items()))
        for skipped in report["skipped"]:
            print(f"not read (only local files are): {skipped}")
    if problems:
        print(counted(len(problems), "problem"))
    else:
        print(f"{file}: nothing is wrong" + ("" if report is not None else " with the YAML; its data were not read"))


def run(args: argparse.Namespace) -> int:
    """Validate; 2 when anything is wrong."""
    text = read_text(args.file)
    problems: list[dict[str, Any]] = [asdict(problem) for problem in validate_document(text)]
    report = None
    if not problems and not args.skip_data and ("kind: FineTuneJob" in text or args.data):
        problems, report = _check_data(args.file, args.data)
    if args.output == "table":
        _print_table(args.file, problems, report)
    else:
        print_machine({"valid": not problems, "problems": problems, "data": report}, args.output)
    return CliExit.USAGE if problems else CliExit.SUCCEEDED
