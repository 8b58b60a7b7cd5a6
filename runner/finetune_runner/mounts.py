"""Where pvc:// and oci:// sources are in a pod: the operator mounts them, read-only, before a stage starts."""

from __future__ import annotations

from pathlib import Path

from finetune_api.oci import ImageSource, parse_image_source

PVC_ROOT = Path("/mnt/pvc")
OCI_ROOT = Path("/mnt/oci")


def path_of(source: str) -> Path:
    """The path of a pvc://claim/path or oci://image/path."""
    if source.startswith("pvc://"):
        return PVC_ROOT / source.removeprefix("pvc://")
    image: ImageSource = parse_image_source(source)
    return OCI_ROOT / image.mount_name / image.path
