"""Approve a version of the local registry: channels on latestApproved then serve it.

In a cluster approvals are made with kubectl under the person's own name (docs/cli.md says how).
"""

from __future__ import annotations

import argparse

from finetune_cli.decision import EXAMPLES_OF, add_decision_arguments, decide_version

EXAMPLES = EXAMPLES_OF["approve"]
add_arguments = add_decision_arguments


def run(args: argparse.Namespace) -> int:
    """Record the approval."""
    return decide_version(args, "approve")
