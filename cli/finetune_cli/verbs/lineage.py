"""Tell which versions were trained on the rows of a file.

Versions keep salted hashes of their rows, never the text. A row is found when its messages (without the system prompt)
are those that were read for training, whatever was redacted or dropped around it afterwards. Reads the storage with
your own credentials; no cluster is asked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pydantic import ValidationError
from rich.text import Text

from finetune_api.job.data import Columns
from finetune_api.wording import counted
from finetune_cli.errors import CliError, CliExit
from finetune_cli.options import add_output, checked_name, default_state
from finetune_cli.render.machine import print_machine
from finetune_cli.render.summary import console_for
from finetune_cli.runner_process import ask_runner

WORLD = "local"
EXAMPLES = """
examples:
  finetune lineage rows.jsonl
  finetune lineage rows.jsonl --adapter support-triage
  finetune lineage rows.csv --columns prompt=question,completion=answer
  finetune lineage rows.jsonl --storage s3://team-a/adapters -o json

exit codes:
  0    looked up, whether a version was found or not
  2    the rows or the storage cannot be read
"""


def _columns(text: str) -> Columns:
    wire: dict[str, str] = {}
    for pair in text.split(","):
        key, _, name = (part.strip() for part in pair.partition("="))
        if not key or not name:
            raise argparse.ArgumentTypeError(f"{text!r} is not KEY=NAME,...; write for example prompt=question")
        if key not in Columns.model_fields:
            known = ", ".join(Columns.model_fields)
            raise argparse.ArgumentTypeError(f"there is no key {key!r}; the keys are {known}")
        if wire.setdefault(key, name) != name:
            raise argparse.ArgumentTypeError(f"{key} is named twice; keep one of them")
    try:
        return Columns.from_wire(wire)
    except ValidationError as error:
        raise argparse.ArgumentTypeError("; ".join(item["msg"] for item in error.errors())) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the rows asked for, in any layout a job takes")
    parser.add_argument(
        "--columns",
        type=_columns,
        metavar="KEY=NAME,...",
        help="columns with other names than the layout's own, as in data.train[].columns",
    )
    parser.add_argument(
        "--storage", metavar="URI", help="storage root of the versions (default: that of the local registry)"
    )
    parser.add_argument("--endpoint", metavar="URL", help="of an S3-compatible service (default: $AWS_ENDPOINT_URL)")
    parser.add_argument("--adapter", metavar="NAME", help="only versions of this adapter")
    parser.add_argument(
        "--state", type=Path, default=default_state(), metavar="DIR", help="folder of the local registry"
    )
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Look the rows up."""
    storage = args.storage or f"file://{args.state.absolute()}/storage"
    if not storage.startswith(("file:///", "s3://")):
        raise CliError(
            f"--storage: {storage!r} is no storage root", "Write s3://bucket/prefix or file:///absolute/path."
        )
    arguments = ["--rows", str(args.file), "--storage", storage]
    arguments += ["--endpoint", args.endpoint] if args.endpoint else []
    arguments += ["--adapter", checked_name(args.adapter, "--adapter")] if args.adapter else []
    arguments += ["--columns", json.dumps(args.columns.to_wire())] if args.columns else []
    answer = ask_runner("trained_on", arguments, "looking the rows up")
    if "problem" in answer:
        raise CliError(answer["problem"]["message"], answer["problem"]["hint"])
    if args.output != "table":
        print_machine(answer, args.output)
        return CliExit.SUCCEEDED
    console = console_for()

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    for version in answer["trainedOn"]:
        rows = ", ".join(f"{count} in {split}" for split, count in version["rows"].items())
        say(f"{version['version']}  {rows}: {', '.join(version['first'])}")
    others = len(answer["notTrainedOn"])
    say(
        f"{counted(answer['differentRows'], 'row')} looked up; "
        f"{counted(len(answer['trainedOn']), '[version has|versions have]')} one, {counted(others, '[has|have]')} none"
    )
    if answer["unknown"]:
        say(f"cannot tell, for they keep no row hashes: {', '.join(answer['unknown'])}")
    return CliExit.SUCCEEDED
