"""Build images ahead of the tests: `python -m tests.cluster.harness.images [operator] [runner] [base]`."""

from __future__ import annotations

import argparse
import sys

from . import ImageError, base_image, built


def main() -> int:
    """Build what is asked for, and print the names it has in the cache."""
    parser = argparse.ArgumentParser(prog="tests.cluster.harness.images", description="Build images into the cache.")
    parser.add_argument("target", nargs="*", choices=["operator", "runner", "base"], default=["operator", "runner"])
    try:
        for target in parser.parse_args().target:
            print(base_image() if target == "base" else built(target).image)
    except ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
