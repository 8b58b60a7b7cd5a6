"""Print the version of the command line and of the API it speaks."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

from finetune_api.base import API_GROUP_VERSION
from finetune_cli.options import add_output
from finetune_cli.render.machine import print_machine

WORLD = "local"
EXAMPLES = """
examples:
  finetune version
  finetune version -o json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Print the versions."""
    try:
        own = version("finetune-operator")
    except PackageNotFoundError:
        own = "unknown"
    facts = {"version": own, "api": API_GROUP_VERSION, "python": platform.python_version()}
    if args.output == "table":
        print(f"finetune {own}, API {API_GROUP_VERSION}, Python {facts['python']}")
    else:
        print_machine(facts, args.output)
    return 0
