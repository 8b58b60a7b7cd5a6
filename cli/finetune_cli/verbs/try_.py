"""Ask a version of the local registry something: the base model's answer beside the tuned one's."""

from __future__ import annotations

import argparse

from rich.table import Table
from rich.text import Text

from finetune_cli.errors import CliError, CliExit
from finetune_cli.local.objects import ObjectStore
from finetune_cli.local.registry import get_version
from finetune_cli.local.state import open_state
from finetune_cli.options import add_output, add_state, namespace_of, parse_version_name
from finetune_cli.render.machine import print_machine
from finetune_cli.render.summary import console_for
from finetune_cli.runner_process import ask_runner

EXAMPLES = """
examples:
  finetune try support-triage@v1 "My invoice shows the wrong amount"
  finetune try support-triage@v1 "Where is my parcel?" -o json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("version", metavar="ADAPTER@VERSION", help="for example support-triage@v1")
    parser.add_argument("text", metavar="TEXT", help="what the user says")
    parser.add_argument("--model", metavar="PATH", default=None, help="base model, when it has moved since")
    add_state(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Generate twice and show both."""
    wanted = parse_version_name(args.version)
    if not args.text.strip():
        raise CliError("TEXT is empty", 'Write what the user says, for example "Where is my parcel?".')
    store = ObjectStore(open_state(args.state, create=False))
    spec = get_version(store, namespace_of(args), wanted).spec
    model = (args.model or spec.base.source).removeprefix("file://")
    answers = ask_runner(
        "generate", ["--version-uri", spec.uri, "--model", model, "--text", args.text], f"asking {wanted}"
    )
    if args.output != "table":
        print_machine({"version": str(wanted), "text": args.text, **answers}, args.output)
        return CliExit.SUCCEEDED
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("BASELINE", overflow="fold", ratio=1)
    table.add_column(str(wanted), overflow="fold", ratio=1)
    table.add_row(Text(str(answers.get("baseline", ""))), Text(str(answers.get("tuned", ""))))
    console_for().print(table)
    return CliExit.SUCCEEDED
