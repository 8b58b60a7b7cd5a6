"""Check offline that pyproject.toml and requirements/*.lock agree (`make verify`); `make lock` mends what it finds.

A lock must pin and hash everything, name no registry, hold every requirement that pyproject.toml declares for it in a
version the declaration allows, and agree with dev.lock on every version both have.
"""

import re
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# The extras of pyproject.toml that each lock is made from ("" is the core).
LOCKS = {
    "dev.lock": ("", "benchmarks", "cli", "operator", "runner", "deepspeed", "dev"),
    "operator.lock": ("", "operator"),
    "runner.lock": ("", "runner", "deepspeed"),
    "triton.lock": (),
    "runner-vllm.lock": ("", "runner", "deepspeed"),
    "vllm.lock": ("", "runner"),
}
BOOTSTRAP = "bootstrap.lock"
MLFLOW = "mlflow.lock"
"""The tests' MLflow server has an environment of its own: it wants another pyarrow than the runner."""
ADDRESS = re.compile(r"\w+://|--(extra-)?index-url|--find-links|\s@\s", re.IGNORECASE)

Pins = dict[str, set[str]]


def read_lock(name: str, text: str) -> tuple[Pins, list[str]]:
    """Read a lock's pins (a package may have one version per marker) and say what is wrong with their form."""
    pins: Pins = defaultdict(set)
    errors = []
    for entry in text.replace("\\\n", " ").splitlines():
        line = entry.strip()
        if not line or line.startswith("#"):
            continue
        if ADDRESS.search(line):
            errors.append(f"{name}: names an address or an index: {line[:80]}")
            continue
        requirement = Requirement(line.partition(" --hash=")[0])
        versions = [spec.version for spec in requirement.specifier if spec.operator == "=="]
        if len(versions) != 1:
            errors.append(f"{name}: {requirement.name} is not pinned to one version")
            continue
        if " --hash=sha256:" not in line:
            errors.append(f"{name}: {requirement.name} has no sha256 hash")
        pins[canonicalize_name(requirement.name)].add(versions[0])
    return pins, errors


def declared(project: dict[str, Any], extras: tuple[str, ...]) -> list[Requirement]:
    """List the requirements that pyproject.toml declares for the extras, without references to the project itself."""
    texts = list(project["dependencies"]) if "" in extras else []
    for extra in extras:
        texts += project["optional-dependencies"].get(extra, [])
    requirements = [Requirement(text) for text in texts]
    return [req for req in requirements if canonicalize_name(req.name) != canonicalize_name(project["name"])]


def check(root: Path) -> list[str]:
    """Return one line for each disagreement between pyproject.toml and the locks under `root`."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    errors: list[str] = []
    pins: dict[str, Pins] = {}
    for name in (*LOCKS, BOOTSTRAP, MLFLOW):
        pins[name], found = read_lock(name, (root / "requirements" / name).read_text())
        errors += found
    for name, extras in LOCKS.items():
        for requirement in declared(project, extras):
            versions = pins[name].get(canonicalize_name(requirement.name), set())
            if not versions:
                errors.append(f"{name}: {requirement.name} is declared in pyproject.toml and missing here")
            errors += [
                f"{name}: {requirement.name} {version} is not {requirement.specifier}, which pyproject.toml declares"
                for version in sorted(versions)
                if not requirement.specifier.contains(version, prereleases=True)
            ]
    for name in (*LOCKS, BOOTSTRAP):
        for package, versions in pins[name].items():
            common = pins["dev.lock"].get(package, set())
            if common and not versions <= common:
                errors.append(f"{name}: {package} {sorted(versions)} differs from dev.lock's {sorted(common)}")
    return errors


def main() -> int:
    """Print the disagreements of this checkout; 1 where there are any."""
    errors = check(Path(__file__).resolve().parent.parent)
    for error in errors:
        print(error, file=sys.stderr)
    if errors:
        print("run `make lock`, and commit what it changes", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
