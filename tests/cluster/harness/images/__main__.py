"""Build images ahead of the tests: `python -m tests.cluster.harness.images [operator] [runner] [base]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import ImageError, base_image, built, missing

_TARGETS = ("operator", "runner", "base")


def main(argv: Sequence[str] | None = None) -> int:
    """Build what is asked for (both images), and print the names it has in the cache."""
    parser = argparse.ArgumentParser(prog="tests.cluster.harness.images", description="Build images into the cache.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(_TARGETS)}; by default both images")
    parser.add_argument("--where-possible", action="store_true", help="say what is missing here, and end well")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.targets) - set(_TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(_TARGETS)}")
    if arguments.where_possible and (reason := missing()):
        print(f"images: not built: {reason}", file=sys.stderr)
        return 0
    try:
        for target in arguments.targets or ("operator", "runner"):
            print(base_image() if target == "base" else built(target).image)
    except ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
