"""Volumes of a stage's pod: its task, scratch space, Secrets, claims, and the credentials of live progress. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_api.common import SecretRef
from finetune_api.job.model import FETCHED_SCHEMES
from finetune_api.oci import ImageSource, parse_image_source
from finetune_api.stages import StageTask
from finetune_operator.builders.names import TASK_ANNOTATION
from finetune_operator.builders.progress import PROGRESS_PATH, credentials_volume
from finetune_operator.decide.types import StartStage

SECRETS_PATH = "/etc/finetune/secrets"
TASK_PATH = "/etc/finetune/task"
TASK_FILE = f"{TASK_PATH}/task.json"
PVC_PATH = "/mnt/pvc"
PVC_SCHEME = "pvc://"
OCI_PATH = "/mnt/oci"
OCI_SCHEME = "oci://"
MODEL_CACHE_PATH = "/mnt/model-cache"


def _inputs(task: StageTask) -> Iterator[tuple[str, SecretRef | None]]:
    """Sources this stage reads, with their secrets. Only prepare sees data sources: later stages read the run."""
    spec = task.spec
    yield spec.model.source, spec.model.secret_ref
    if task.stage != "prepare":
        return
    for dataset in spec.data.train:
        yield dataset.source, dataset.secret_ref
    for holdout in (spec.data.validation, spec.data.test):
        if holdout.source is not None:
            yield holdout.source, holdout.secret_ref
    for general in (spec.data.replay, spec.evaluation.out_of_domain):
        if general is not None:
            yield general.source, general.secret_ref


def _tracker_secrets(task: StageTask) -> list[SecretRef | None]:
    """Credentials of the trackers, for the stages that tell them something."""
    tracking = task.spec.tracking
    if task.stage not in ("train", "evaluate"):
        return []
    return [tracker.secret_ref for tracker in (tracking.mlflow, tracking.wandb) if tracker is not None]


def secret_names(task: StageTask) -> list[str]:
    """Secrets this stage needs, each once. Recovering a report needs only the storage."""
    references = [task.storage.secret_ref]
    if task.mode == "run":
        references += [secret for _, secret in _inputs(task)]
        references += _tracker_secrets(task)
    return sorted({reference.name for reference in references if reference is not None})


def claim_names(task: StageTask) -> list[str]:
    """Persistent volume claims this stage reads from, each once."""
    if task.mode != "run":
        return []
    sources = [source for source, _ in _inputs(task) if source.startswith(PVC_SCHEME)]
    return sorted({source.removeprefix(PVC_SCHEME).split("/", 1)[0] for source in sources})


def image_sources(task: StageTask) -> list[ImageSource]:
    """Images this stage reads from as volumes, each once."""
    if task.mode != "run":
        return []
    images = [parse_image_source(source) for source, _ in _inputs(task) if source.startswith(OCI_SCHEME)]
    return [by_name[1] for by_name in sorted({image.reference: image for image in images}.items())]


def mounts_model_cache(start: StartStage) -> bool:
    """Whether the stage's pod has the pool's model cache."""
    wanted = start.task.mode == "run" and start.task.spec.model.source.startswith(FETCHED_SCHEMES)
    return wanted and start.resolved.pool_spec.model_cache is not None


def fills_model_cache(start: StartStage) -> bool:
    """Whether it may write there: only prepare, which holds no GPU."""
    return mounts_model_cache(start) and start.task.stage == "prepare"


def volumes(start: StartStage, *, heavy: bool, progress: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and the container's mounts. Names are numbered: a Secret's own name may be too long for one."""
    made: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []

    def add(name: str, path: str, source: dict[str, Any], *, read_only: bool = False) -> None:
        made.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})})

    annotation = {"fieldPath": f"metadata.annotations['{TASK_ANNOTATION}']"}
    add("task", TASK_PATH, {"downwardAPI": {"items": [{"path": "task.json", "fieldRef": annotation}]}}, read_only=True)
    add("scratch", "/scratch", {"emptyDir": {"sizeLimit": start.resolved.pool_spec.scratch_size}})
    add("tmp", "/tmp", {"emptyDir": {}})  # noqa: S108 - a path inside the pod
    if heavy:
        # NCCL and data loaders share memory between processes; the default of 64 MiB is too small.
        add("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}})  # noqa: S108 - a path inside the pod
    for number, name in enumerate(secret_names(start.task)):
        secret = {"secret": {"secretName": name, "defaultMode": 0o440}}
        add(f"secret-{number}", f"{SECRETS_PATH}/{name}", secret, read_only=True)
    for number, name in enumerate(claim_names(start.task)):
        claim = {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
        add(f"claim-{number}", f"{PVC_PATH}/{name}", claim, read_only=True)
    for number, image in enumerate(image_sources(start.task)):
        # The kubelet mounts images read-only and without the right to execute.
        reference = {"image": {"reference": image.reference, "pullPolicy": "IfNotPresent"}}
        add(f"image-{number}", f"{OCI_PATH}/{image.mount_name}", reference, read_only=True)
    cache = start.resolved.pool_spec.model_cache
    if cache is not None and mounts_model_cache(start):
        # Read-only is a matter of the mount: some drivers refuse one volume in two modes on one node.
        claim = {"persistentVolumeClaim": {"claimName": cache.claim_name}}
        add("model-cache", MODEL_CACHE_PATH, claim, read_only=not fills_model_cache(start))
    if progress:
        add("progress", PROGRESS_PATH, credentials_volume(start.task), read_only=True)
    return made, mounts
