"""Build images ahead of the tests: `python -m tests.cluster.harness.images [operator] [runner] [base]`."""

from __future__ import annotations

import argparse
import sys

from . import ImageError, base_image, built, missing


def main() -> int:
    """Build what is asked for, and print the names it has in the cache."""
    parser = argparse.ArgumentParser(prog="tests.cluster.harness.images", description="Build images into the cache.")
    parser.add_argument("target", nargs="*", choices=["operator", "runner", "base"], default=["operator", "runner"])
    parser.add_argument("--where-possible", action="store_true", help="say what is missing here, and end well")
    arguments = parser.parse_args()
    if arguments.where_possible and (reason := missing()):
        print(f"images: not built: {reason}", file=sys.stderr)
        return 0
    try:
        for target in arguments.target:
            print(base_image() if target == "base" else built(target).image)
    except ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
