"""Ask a version something: the base model's answer beside the tuned one's."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table
from rich.text import Text

from finetune_api.adapterversion import VersionBase
from finetune_api.finetunejob import FineTuneJob
from finetune_cli.errors import CliError, CliExit
from finetune_cli.local.objects import ObjectStore
from finetune_cli.local.registry import get_adapter, get_version
from finetune_cli.local.state import StateDir, open_state
from finetune_cli.options import add_output, add_state, namespace_of, parse_version_name
from finetune_cli.render.machine import print_machine
from finetune_cli.render.summary import console_for
from finetune_cli.runner_process import ask_runner

WORLD = "local"
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


def model_folder(state: StateDir, base: VersionBase) -> Path:
    """Where the base model lies on this machine. Raises CliError when it was not kept."""
    scheme, _, rest = base.source.partition("://")
    if scheme == "file":
        folder = Path(rest)
    elif scheme == "hf":
        # The layout of the Hugging Face cache, which `run` fills.
        folder = state.models / "hub" / f"models--{rest.replace('/', '--')}" / "snapshots" / base.revision
    else:
        raise CliError(f"the base model is at {base.source}", "Name a local copy of it with --model FOLDER.")
    if not folder.is_dir():
        raise CliError(f"the base model is not in {folder} any more", "Name a copy of it with --model FOLDER.")
    return folder


def run(args: argparse.Namespace) -> int:
    """Generate twice and show both."""
    wanted = parse_version_name(args.version)
    if not args.text.strip():
        raise CliError("TEXT is empty", 'Write what the user says, for example "Where is my parcel?".')
    state = open_state(args.state, create=False)
    store, namespace = ObjectStore(state), namespace_of(args)
    spec = get_version(store, namespace, wanted).spec
    storage = get_adapter(store, namespace, wanted.adapter).spec.storage
    job = store.get(FineTuneJob, namespace, spec.origin.job)
    options = {
        "--version-uri": spec.uri,
        "--model": args.model or str(model_folder(state, spec.base)),
        "--text": args.text,
        # The base gets the help it had in the evaluation.
        "--baseline-prompt": job.spec.evaluation.baseline_prompt if job is not None else None,
        "--endpoint": storage.endpoint,
        "--secret": storage.secret_ref.name if storage.secret_ref is not None else None,
    }
    arguments = [word for name, value in options.items() if value for word in (name, value)]
    answers = ask_runner("generate", arguments, f"asking {wanted}")
    if args.output != "table":
        print_machine({"version": str(wanted), "text": args.text, **answers}, args.output)
        return CliExit.SUCCEEDED
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("BASELINE", overflow="fold", ratio=1)
    table.add_column(str(wanted), overflow="fold", ratio=1)
    table.add_row(Text(str(answers.get("baseline", ""))), Text(str(answers.get("tuned", ""))))
    console_for().print(table)
    return CliExit.SUCCEEDED
