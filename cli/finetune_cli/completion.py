"""Completion for `kubectl finetune`: kubectl runs `kubectl_complete-finetune` with the words typed so far.

The protocol is cobra's: one completion per line, a tab and its description, and a last line with a directive
(https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/, "Custom completion").
"""

from __future__ import annotations

import argparse
import sys

from finetune_cli.errors import CliError
from finetune_cli.main import summary_of, verb_files
from finetune_cli.options import add_cluster

NO_FILES = ":4"
FILES = ":0"
OF_JOBS = frozenset({"status", "watch", "logs", "events", "wait", "suspend", "resume", "cancel", "retry"})
OF_VERSIONS = frozenset({"approve", "reject"})


def _names(verb: str, words: list[str]) -> list[str]:
    """Names in the cluster that fit the verb; none when it cannot be asked: a prompt is no place for an error."""
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.refusals import Refusal
    from finetune_cli.cluster.resources import ADAPTER_VERSIONS, ADAPTERS, FINETUNE_JOBS

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_cluster(parser)
    try:
        args, _ = parser.parse_known_args(words)
        connection = connect(args)
        if verb in OF_VERSIONS:
            items = connection.api.list(ADAPTER_VERSIONS, connection.namespace)["items"]
            return [f"{item['spec']['adapter']}@v{item['spec']['version']}" for item in items]
        resource = FINETUNE_JOBS if verb in OF_JOBS else ADAPTERS
        return [item["metadata"]["name"] for item in connection.api.list(resource, connection.namespace)["items"]]
    except (CliError, Refusal, argparse.ArgumentError):
        return []


def completions(words: list[str]) -> list[str]:
    """Lines to print; the last word is the one being typed."""
    *before, typed = words or [""]
    if not before:
        verbs = verb_files()
        return [f"{name}\t{summary_of(verbs[name])}" for name in verbs if name.startswith(typed)] + [NO_FILES]
    verb = before[0]
    if verb in ("submit", "run", "validate"):
        return [FILES]
    positional = [word for word in before[1:] if not word.startswith("-")]
    if verb not in OF_JOBS | OF_VERSIONS | {"versions"} or typed.startswith("-"):
        return [NO_FILES]
    named = [name for name in _names(verb, before[1:]) if name.startswith(typed) and name not in positional]
    return [*sorted(named), NO_FILES]


def main() -> int:
    """Print the completions of the words on the command line."""
    print("\n".join(completions(sys.argv[1:])))
    return 0
