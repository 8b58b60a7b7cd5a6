"""Environments of their own for what wants other packages than ours: made from a lock, once, in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.harness.binaries import cache_root

LOCKS = Path(__file__).parents[2] / "requirements"


def locked_home(name: str) -> Path:
    """The folder of the environment that `requirements/NAME.lock` describes, made when it is not there."""
    lock_file = LOCKS / f"{name}.lock"
    digest = hashlib.sha256(lock_file.read_bytes()).hexdigest()[:16]
    folder = cache_root() / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}-{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").is_file():
            uv = [sys.executable, "-m", "uv"]
            caches = {"UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(cache_root() / "uv"))}
            own = {**os.environ, **caches, "UV_PYTHON_DOWNLOADS": "never"}
            subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True, env=own)
            sync = [*uv, "pip", "sync", "--quiet", "--require-hashes", "--python", folder / "bin/python", lock_file]
            subprocess.run(sync, check=True, env=own)
            (folder / "complete").touch()
    return folder
