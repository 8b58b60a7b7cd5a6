"""The one exception that a stage ends with: an exit code of the contract and words that a user can act on."""

from __future__ import annotations

import errno

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE, ExitCode

FULL_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_FULL_DISK_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large (os error",
    "database or disk is full",
)
"""The system's words, as they are and in errors of libraries in Rust (safetensors), and SQLite's."""
_FULL_DISK_IN_SQLITE = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE"})
"""The second is what a quota or a limit on the size of files makes of a write."""


class StageError(Exception):
    """A failure with a typed cause.

    Args:
        exit_code: what the process ends with; it decides the operator's policy.
        message: what was wrong and where (field, file, row, bucket).
        hint: what to do about it.
        evidence: the line that shows it.
    """

    def __init__(self, exit_code: ExitCode, message: str, hint: str = "", evidence: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        self.hint = hint
        self.evidence = evidence

    @property
    def cause(self) -> str:
        """Name of the cause in status."""
        return CAUSE_OF_EXIT_CODE[self.exit_code]


def classify(error: BaseException) -> StageError:
    """The StageError that any exception amounts to; torch's are known by name, so that torch is not imported."""
    if isinstance(error, StageError):
        return error
    evidence = f"{type(error).__name__}: {error}"[:1000]
    text = str(error)
    if isinstance(error, KeyboardInterrupt):
        return StageError(ExitCode.INTERRUPTED, "the stage was interrupted", "start it again; it resumes", evidence)
    if (type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch")) or (
        isinstance(error, RuntimeError) and "CUDA out of memory" in text
    ):
        return StageError(
            ExitCode.GPU_OUT_OF_MEMORY,
            "the GPU's memory is exhausted",
            "lower training.maxLength or evaluation.maxNewTokens, use method.type: qlora, or a pool with larger GPUs",
            evidence,
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text):
        return StageError(
            ExitCode.HOST_OUT_OF_MEMORY,
            "the pod's memory is exhausted",
            "raise the memory of the pool's pods",
            evidence,
        )
    if (
        (isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS)
        or any(words in text for words in _FULL_DISK_WORDS)
        or getattr(error, "sqlite_errorname", "") in _FULL_DISK_IN_SQLITE
    ):
        return disk_full(getattr(error, "filename", None) or "the working folder", evidence)
    if isinstance(error, PermissionError) and error.filename is not None:
        return StageError(
            ExitCode.ACCESS_DENIED,
            f"no right to open {error.filename}",
            "let the runner's user open it (in a cluster user and group 65532): chmod -R a+rX, or chgrp and chmod g+rX",
            evidence,
        )
    return StageError(
        ExitCode.INTERNAL,
        f"unexpected {type(error).__name__}: {text}"[:1000],
        "this is a defect of the runner: report it with the pod's log",
        evidence,
    )


def disk_full(where: object, evidence: str = "") -> StageError:
    """The error of a disk without room."""
    return StageError(
        ExitCode.DISK_FULL, f"no space left for {where}", "free space, or raise scratchSize of the GPUPool", evidence
    )


def no_number(message: str) -> StageError:
    """The error of a model whose loss is no number."""
    return StageError(
        ExitCode.MODEL_UNUSABLE,
        message,
        "its weights are damaged, or overflow in this precision: compare model.source with where it came from, or set "
        "model.dtype: fp32",
    )


def interrupted() -> StageError:
    """The error of a stage that was asked to stop."""
    return StageError(
        ExitCode.INTERRUPTED, "the stage was asked to stop and stopped", "the next attempt continues where it can"
    )
