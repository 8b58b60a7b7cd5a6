"""The built images in a containerd of the tests' own: containers as a pod has them, without a kubelet."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.harness import images
from tests.cluster.harness.images.containerd import serving


@dataclass(frozen=True)
class Containers:
    """Runs containers of the images under test."""

    ctr: list[str | Path]

    def run(self, image: str, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as the image's user: read-only root, an empty /tmp, no network, no new privileges, seccomp."""
        mount = "type=tmpfs,src=tmpfs,dst=/tmp,options=mode=1777:size=512m"
        return subprocess.run(
            [
                *self.ctr, "run", "--rm", "--read-only", "--seccomp",
                "--mount", mount,
                *[part for name, value in (env or {}).items() for part in ("--env", f"{name}={value}")],
                image, f"test-{secrets.token_hex(5)}", *command,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def output(self, image: str, *command: str, env: dict[str, str] | None = None) -> str:
        """The same for a command that must succeed; its output."""
        done = self.run(image, *command, env=env)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Both images in a running containerd; built if needed, which takes minutes the first time."""
    reason = images.missing()
    if reason:
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("containerd") / "root"
    images.fill_containerd_root(root)
    with serving(root) as ctr:
        yield Containers(ctr)
