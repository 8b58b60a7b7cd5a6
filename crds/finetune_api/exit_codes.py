"""Exit codes of the runner: part of the contract between a stage's pod and the operator.

80-99 belong to us; 137 and 143 come from the kernel and the kubelet. Adding a failure means adding a member here and
one module in `finetune_operator/decide/causes/`.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a stage's process ends with."""

    SUCCEEDED = 0
    INTERNAL = 1
    INVALID_SPEC = 80
    INVALID_DATA = 81
    STORAGE_UNAVAILABLE = 82
    ACCESS_DENIED = 83
    DISK_FULL = 84
    INTERRUPTED = 85
    GPU_OUT_OF_MEMORY = 86
    HOST_OUT_OF_MEMORY = 87
    TRAINING_DIVERGED = 88
    HUNG = 89
    FENCED = 90
    MODEL_UNUSABLE = 91
    SOURCE_NOT_FOUND = 92
    GPU_UNAVAILABLE = 93


CAUSE_OF_EXIT_CODE: dict[ExitCode, str] = {
    ExitCode.INTERNAL: "InternalError",
    ExitCode.INVALID_SPEC: "InvalidSpec",
    ExitCode.INVALID_DATA: "InvalidData",
    ExitCode.STORAGE_UNAVAILABLE: "StorageUnavailable",
    ExitCode.ACCESS_DENIED: "AccessDenied",
    ExitCode.DISK_FULL: "DiskFull",
    ExitCode.INTERRUPTED: "Interrupted",
    ExitCode.GPU_OUT_OF_MEMORY: "GPUOutOfMemory",
    ExitCode.HOST_OUT_OF_MEMORY: "HostOutOfMemory",
    ExitCode.TRAINING_DIVERGED: "TrainingDiverged",
    ExitCode.HUNG: "Hung",
    ExitCode.FENCED: "Fenced",
    ExitCode.MODEL_UNUSABLE: "ModelUnusable",
    ExitCode.SOURCE_NOT_FOUND: "SourceNotFound",
    ExitCode.GPU_UNAVAILABLE: "GPUUnavailable",
}
