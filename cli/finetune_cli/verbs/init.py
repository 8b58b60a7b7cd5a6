"""Write a minimal YAML for a data file: looks at its first rows and fills in what follows from them."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from finetune_api.validation import validate_document
from finetune_api.wording import counted
from finetune_cli.drafting import MINIMUM_ROWS, Draft, draft_yaml, layout_of
from finetune_cli.errors import CliError, CliExit
from finetune_cli.options import checked_name
from finetune_cli.sampling import sample_rows

DEFAULT_MODEL = "hf://Qwen/Qwen2.5-0.5B-Instruct"
WORLD = "local"
EXAMPLES = """
examples:
  finetune init --data tickets.csv --task classification --label category
  finetune init --data invoices.jsonl --task extraction -o invoices.yaml
  finetune init --data preferences.jsonl --model hf://Qwen/Qwen2.5-7B-Instruct
  finetune init --data chats.parquet --model hf://meta-llama/Llama-3.1-8B-Instruct
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSONL, JSON, CSV or Parquet")
    parser.add_argument(
        "--task",
        choices=["classification", "extraction", "generation"],
        default=None,
        help="what the model is to do (default: classification with --label, else generation)",
    )
    parser.add_argument("--label", metavar="NAME", help="column of the answer, or field of a JSON answer")
    parser.add_argument("--text", metavar="NAME", help="column of the input (default: the longest text)")
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="URI", help=f"base model (default: {DEFAULT_MODEL})")
    parser.add_argument("--name", help="name of job and adapter (default: the file's name)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("finetunejob.yaml"), metavar="FILE", help="default: finetunejob.yaml"
    )
    parser.add_argument("--force", action="store_true", help="replace the output file")


def _name_of(data: Path) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", data.name.split(".", 1)[0].lower()).strip("-")[:40].strip("-")
    return words if words[:1].isalpha() else f"job-{words}".strip("-")


def _file_uri(path: str, folder: Path) -> str:
    if "://" in path:
        return path
    target = Path(path).expanduser().resolve()
    inside = target.is_relative_to(folder)
    uri = f"file://{os.path.relpath(target, folder)}" if inside else f"file://{target}"
    if any(character.isspace() for character in uri):
        raise CliError(f"the path {path!r} contains white space", "Rename it, or make a link without white space.")
    return uri


def run(args: argparse.Namespace) -> int:
    """Write the YAML."""
    output: Path = args.output
    if output.exists() and not args.force:
        raise CliError(f"{output} exists", "Name another file with -o, or replace it with --force.")
    rows = sample_rows(args.data)
    name = checked_name(args.name or _name_of(args.data), "--name")
    folder = output.resolve().parent
    draft = Draft(
        name=name,
        source=_file_uri(str(args.data), folder),
        model=_file_uri(args.model, folder),
        task=args.task or ("classification" if args.label else "generation"),
        label=args.label,
        text=args.text,
    )
    layout = layout_of(rows, draft.label, draft.text)
    text = draft_yaml(draft, layout)
    problems = validate_document(text)
    if problems:
        raise CliError("\n".join(str(problem) for problem in problems), "Give other names with --name and --label.")
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(f"cannot write {output}: {error.strerror}") from error
    how = "" if layout.objective == "sft" else f" by {layout.objective}"
    print(f"{output}: {draft.task}{how} on {args.data}, adapter {name}")
    if len(rows) < MINIMUM_ROWS:
        found = counted(len(rows), "row")
        print(f"warning: {args.data} has {found}; below {MINIMUM_ROWS} a prompt with examples usually wins")
    print(f"next     finetune validate {output}")
    print(f"         finetune run {output}")
    return CliExit.SUCCEEDED
