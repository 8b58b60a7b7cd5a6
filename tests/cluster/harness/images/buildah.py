"""buildah with a store of its own in the cache: the base image, builds, and what is done with their results."""

from __future__ import annotations

import collections
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from .sources import ROOT, labels

_SUITE = "bookworm"
_PACKAGES = ("ca-certificates", "python3", "python3-venv")
_DOCUMENTATION = (
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


BASE = f"localhost/finetune-base:{_SUITE}-{_digest(repr((_PACKAGES, _DOCUMENTATION)))}"
"""Debian with Python, the stand-in for the official Python image where there is no registry."""

_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_SHOWN = ("STEP", "Error", "removed")


class ImageError(RuntimeError):
    """An image could not be made; the message names the command and shows the end of its output."""


def say(line: str) -> None:
    """Print a line of progress."""
    print(f"images: {line}", file=sys.stderr, flush=True)


def run(command: list[str | Path], env: dict[str, str] | None = None, stdin: IO[bytes] | None = None) -> str:
    """Run a program to its end; its output.

    Raises:
        ImageError: it failed, or is not installed.
    """
    try:
        done = subprocess.run(command, env=env, stdin=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ImageError(f"{command[0]} is not installed: `make node-deps` installs it") from error
    if done.returncode != 0:
        raise ImageError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


class Buildah:
    """buildah as this project needs it on a machine without a registry, and perhaps without systemd.

    Args:
        folder: where its store and configuration are.
    """

    def __init__(self, folder: Path) -> None:
        runtime = shutil.which("runc") or shutil.which("crun") or "runc"
        folder.mkdir(parents=True, exist_ok=True)
        storage = folder / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "/run/finetune-images/{_digest(str(folder.resolve()))}"\n'
            f'graphroot = "{folder / "storage"}"\n'
        )
        containers = folder / "containers.conf"
        containers.write_text(
            '[containers]\npids_limit = 0\ndefault_ulimits = ["nofile=16384:16384"]\n'
            f'[engine]\ncgroup_manager = "cgroupfs"\nruntime = "{runtime}"\n'
        )
        self._flags = ["--isolation", "oci", "--runtime", runtime, "--network", "host", "--pull=never", "--layers"]
        self.temporary = folder / "tmp"
        """On the disk of the store; emptied before a build."""
        self.temporary.mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_CONF": str(containers),
            "TMPDIR": str(self.temporary),
        }

    def __call__(self, *args: str | Path) -> str:
        """Run one command of buildah; its output.

        Raises:
            ImageError: it failed.
        """
        return run(["buildah", *args], self.environment).strip()

    def has(self, image: str) -> bool:
        """Whether the store has an image of that name."""
        command = ["buildah", "inspect", "--type", "image", image]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    def clean(self) -> None:
        """Remove what an interrupted build left: gigabytes. Nothing else may be building in this store."""
        self("rm", "--all")
        shutil.rmtree(self.temporary)
        self.temporary.mkdir()

    def build(self, target: str, image: str) -> None:
        """Build a target of the Dockerfile, with a line of progress per step.

        Raises:
            ImageError: the build failed; the message is the end of its output.
        """
        started = time.monotonic()
        say(f"building {image} ...")
        self.clean()
        command = [
            "buildah",
            "build",
            *self._flags,
            "--file",
            str(ROOT / "Dockerfile"),
            "--target",
            target,
            "--tag",
            image,
        ]
        command += ["--build-arg", f"BASE={self.base()}"]
        command += [f"--label={name}={value}" for name, value in labels().items()]
        trusted = Path(os.environ.get("SSL_CERT_FILE") or _CERTIFICATES)
        if trusted.is_file():  # for the time of the build: a registry of packages behind a private authority
            command += ["--volume", f"{trusted.resolve()}:{_CERTIFICATES}:ro"]
        output = collections.deque[str](maxlen=60)
        with subprocess.Popen(
            [*command, str(ROOT)], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                output.append(line)
                if any(word in line for word in _SHOWN):
                    say(f"  {time.monotonic() - started:4.0f} s  {line.strip()[:120]}")
        if process.returncode != 0:
            raise ImageError(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(output)}")
        say(f"built {image} in {time.monotonic() - started:.0f} s")

    def base(self) -> str:
        """The name of the base image; made with debootstrap where the store lacks it.

        Raises:
            ImageError: debootstrap failed, or this machine has no Debian mirror configured.
        """
        if self.has(BASE):
            return BASE
        started = time.monotonic()
        say(f"building {BASE} with debootstrap ...")
        with tempfile.TemporaryDirectory(prefix="base-", dir=self.temporary) as work:
            root = Path(work) / "root"
            run(["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, root, _mirror()])
            for name in _DOCUMENTATION:
                for path in (root / name).iterdir():
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            for path in sorted((root / "usr/share/doc").rglob("*"), reverse=True):
                if path.is_symlink() or (path.is_file() and path.name != "copyright"):
                    path.unlink()
            for name in ("hostname", "resolv.conf"):  # this machine's
                (root / "etc" / name).write_text("")
            archive = Path(work) / "root.tar"
            run(["tar", "-C", root, "--numeric-owner", "-cf", archive, "."])
            container = self("from", "scratch")
            self("add", "--quiet", container, archive, "/")
            self("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
            self("commit", "--quiet", "--rm", container, BASE)
        say(f"built {BASE} in {time.monotonic() - started:.0f} s")
        return BASE


def _mirror() -> str:
    """The address this machine's apt takes Debian from."""
    lines = run(["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"])
    sites = [site for suite, _, site in (line.partition(" ") for line in lines.splitlines()) if suite == _SUITE]
    if not sites:
        raise ImageError(f"apt on this machine knows no mirror of Debian {_SUITE}: add one to its sources")
    return sites[0]
