"""What goes into each image, and a key that changes with it."""

from __future__ import annotations

import hashlib
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]

_COMMON = (
    "Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "crds/finetune_api",
    "requirements/bootstrap.lock", "requirements/install-in-image.sh", "requirements/code-in-image.sh",
)  # fmt: skip
SOURCES = {
    "operator": (*_COMMON, "requirements/operator.lock", "operator/finetune_operator"),
    "runner": (*_COMMON, "requirements/runner.lock", "requirements/unused.py", "runner/finetune_runner"),
}
"""Target of the Dockerfile -> the files and folders that its stages copy; tests compare it with the Dockerfile."""


def files(target: str, root: Path = ROOT) -> Iterator[Path]:
    """Every file that goes into the image of a target, without bytecode."""
    for name in SOURCES[target]:
        path = root / name
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in inside if file.is_file() and "__pycache__" not in file.parts)


def key(target: str, base: str, root: Path = ROOT) -> str:
    """A tag that stays the same as long as the image would: of the files' names and contents, and of the base image."""
    digest = hashlib.sha256(base.encode())
    for file in files(target, root):
        content = file.read_bytes()
        digest.update(f"\0{file.relative_to(root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def project_version(root: Path = ROOT) -> str:
    """The version of pyproject.toml."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def labels(root: Path = ROOT) -> dict[str, str]:
    """What OCI's annotations call version, revision and created; the last two only where Git knows them."""
    found = {"version": project_version(root)}
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "log", "-1", "--format=%H %cI"], capture_output=True, text=True, check=False)
    if commit.returncode == 0:
        found["revision"], found["created"] = commit.stdout.split()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
        found["revision"] += "-dirty" if changed.stdout else ""
    return {f"org.opencontainers.image.{name}": value for name, value in found.items()}
