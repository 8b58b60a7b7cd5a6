"""Tell which versions were trained on the rows of a file.

Versions keep salted hashes of their rows, never the text. A row is found when its messages (without the system prompt)
are those that were read for training, whatever was redacted or dropped around it afterwards. Reads the storage with
your own credentials; no cluster is asked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.text import Text

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
  finetune lineage rows.jsonl --storage s3://team-a/adapters -o json

exit codes:
  0    looked up, whether a version was found or not
  2    the rows or the storage cannot be read
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the rows asked for, in any layout a job takes")
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
