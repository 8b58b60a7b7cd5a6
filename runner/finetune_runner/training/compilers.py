"""What torch.compile needs of the image. Without torch: prepare asks too, before a GPU is held."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError


def lacks(gpus: int | None) -> str:
    """What the image has not; empty = nothing.

    Inductor writes C++ for CPUs; for GPUs Triton's kernels, which a C module starts that Triton builds.

    Args:
        gpus: per node; None where they are not known yet: then only what both need is looked for.
    """
    if gpus == 0:
        return "" if _program("CXX", "g++", "clang++") else "C++ compiler"
    if not _program("CC", "gcc", "clang"):
        return "C compiler"
    if gpus is not None and importlib.util.find_spec("triton") is None:
        return "triton"
    return "" if (Path(sysconfig.get_path("include")) / "Python.h").is_file() else "Python.h (headers of Python)"


def _program(variable: str, *names: str) -> bool:
    return any(shutil.which(name) for name in (os.environ.get(variable), *names) if name)


def refuse_lack(gpus: int | None) -> None:
    """Raises StageError (INVALID_SPEC) with the fix when this image cannot compile."""
    if lacking := lacks(gpus):
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"training.torchCompile: this runner image has no {lacking}",
            hint="give the GPUPool the image finetune-runner-compile (docs/images.md), or set training.torchCompile: "
            "auto",
        )
