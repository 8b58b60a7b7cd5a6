"""Options that several verbs share, and values that are typed in one way everywhere."""

from __future__ import annotations

import argparse
import getpass
import os
import re
from dataclasses import dataclass
from pathlib import Path

from finetune_cli.errors import CliError

DEFAULT_STATE = ".finetune"
STATE_VARIABLE = "FINETUNE_STATE"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def add_state(parser: argparse.ArgumentParser) -> None:
    """Where the local registry is."""
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(os.environ.get(STATE_VARIABLE, DEFAULT_STATE)),
        metavar="DIR",
        help=f"folder of the local registry (default: {DEFAULT_STATE} in the current folder, or ${STATE_VARIABLE})",
    )
    parser.add_argument("--namespace", "-n", default=None, metavar="NAME", help="namespace (default: default)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Table for people, JSON or YAML for machines."""
    parser.add_argument(
        "-o", "--output", choices=["table", "json", "yaml"], default="table", help="form of the result (default: table)"
    )


def namespace_of(args: argparse.Namespace) -> str:
    """The namespace asked for. Raises CliError when it is not a DNS label."""
    return checked_name(args.namespace or "default", "--namespace")


def checked_name(name: str, what: str) -> str:
    """The name itself. Raises CliError when it could not be an object's name (it becomes a file name)."""
    if len(name) > 63 or not _NAME.fullmatch(name):
        raise CliError(
            f"{what}: {name!r} is not a valid name",
            "Use lower-case letters, digits and '-', starting and ending with a letter or digit, at most 63.",
        )
    return name


@dataclass(frozen=True)
class VersionName:
    """`support-triage@v3`, taken apart."""

    adapter: str
    number: int

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.adapter}@v{self.number}"


def parse_version_name(text: str) -> VersionName:
    """Take `ADAPTER@vN` apart. Raises CliError naming the form."""
    match = re.fullmatch(r"([a-z0-9][-a-z0-9]*)@v?([1-9][0-9]{0,8})", text)
    if not match:
        raise CliError(f"{text!r} does not name a version", "Write ADAPTER@VERSION, for example support-triage@v1.")
    return VersionName(checked_name(match[1], "the adapter"), int(match[2]))


def current_user() -> str:
    """Who is at the keyboard, as recorded in decisions."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A user id without a name, as in many containers.
        return f"uid-{os.getuid()}"
