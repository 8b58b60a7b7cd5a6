"""Reject a version: it is never released.

In a cluster the decision carries your own name, and the API server refuses any other.
"""

from __future__ import annotations

import argparse

from finetune_cli.decision import EXAMPLES_OF, add_decision_arguments, decide_version

WORLD = "both"
EXAMPLES = EXAMPLES_OF["reject"]
add_arguments = add_decision_arguments


def run(args: argparse.Namespace) -> int:
    """Record the rejection."""
    return decide_version(args, "reject")
