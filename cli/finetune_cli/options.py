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
KUBECTL_PROGRAM = "kubectl finetune"
"""How the program is called as a plugin of kubectl."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def default_state() -> Path:
    """The local registry that nobody named."""
    return Path(os.environ.get(STATE_VARIABLE, DEFAULT_STATE))


_STATE_HELP = f"folder of the local registry (default: {DEFAULT_STATE} in the current folder, or ${STATE_VARIABLE})"


def add_state(parser: argparse.ArgumentParser) -> None:
    """Where the local registry is."""
    parser.add_argument("--state", type=Path, default=default_state(), metavar="DIR", help=_STATE_HELP)
    parser.add_argument("--namespace", "-n", default=None, metavar="NAME", help="namespace (default: default)")


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Which cluster and namespace, as kubectl has it. For verbs that know no other world."""
    group = parser.add_argument_group("the cluster")
    group.add_argument("--namespace", "-n", default=None, metavar="NAME", help="namespace (default: the context's)")
    group.add_argument("--context", default=None, metavar="NAME", help="context of the kubeconfig (default: current)")
    group.add_argument(
        "--kubeconfig",
        type=Path,
        default=None,
        metavar="FILE",
        help="kubeconfig (default: $KUBECONFIG, ~/.kube/config)",
    )


def add_world(parser: argparse.ArgumentParser) -> None:
    """For verbs that know both worlds: a cluster, and the local registry."""
    add_cluster(parser)
    group = parser.add_argument_group(
        "which world",
        "`kubectl finetune` asks the cluster and `finetune` the local registry, unless a flag says otherwise",
    )
    group.add_argument(
        "--cluster", action="store_true", help="ask the cluster (--context and --kubeconfig mean so too)"
    )
    group.add_argument("--local", action="store_true", help="ask the local registry (--state means so too)")
    group.add_argument("--state", type=Path, default=None, metavar="DIR", help=_STATE_HELP)


def wants_cluster(args: argparse.Namespace) -> bool:
    """Whether the cluster is meant. Raises CliError when the flags contradict each other."""
    cluster = args.cluster or args.context is not None or args.kubeconfig is not None
    local = args.local or args.state is not None
    if cluster and local:
        raise CliError(
            "the flags name both a cluster and the local registry",
            "Leave out --local and --state, or --cluster, --context and --kubeconfig.",
        )
    return cluster or (not local and args.program == KUBECTL_PROGRAM)


def state_of(args: argparse.Namespace) -> Path:
    """The local registry of a verb that knows both worlds."""
    return args.state if args.state is not None else default_state()


def add_output(parser: argparse.ArgumentParser, *more: str) -> None:
    """Table for people, JSON or YAML for machines, and further forms."""
    parser.add_argument(
        "-o",
        "--output",
        choices=["table", "json", "yaml", *more],
        default="table",
        help="form of the result (default: table)",
    )


def namespace_of(args: argparse.Namespace) -> str:
    """The namespace asked for in the local registry. Raises CliError when it is not a DNS label."""
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
