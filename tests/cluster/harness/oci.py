"""Write a small container image as an OCI archive, without a daemon, a registry or a base image."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NON_ROOT = "65532:65532"
_EPOCH_S = 0
_MANIFEST, _CONFIG, _LAYER = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar",
)


def write_image(
    archive: Path, name: str, files: Mapping[str, Path], entrypoint: Sequence[str], user: str = NON_ROOT
) -> Path:
    """Write an image of static programs; the same input gives the same bytes.

    Format: https://github.com/opencontainers/image-spec (image-layout.md), one layer, not compressed.

    Args:
        archive: where to write it.
        name: its full name with tag, `localhost/probe:1`.
        files: path in the image -> program.
        entrypoint: what containers run where the pod says nothing else.
        user: uid:gid that containers run as.

    Returns:
        ``archive``.
    """
    layer = _tar({path.lstrip("/"): source.read_bytes() for path, source in files.items()}, mode=0o755)
    blobs = {_digest(layer): layer}

    def add(content: object) -> tuple[str, int]:
        data = json.dumps(content, sort_keys=True).encode()
        blobs[_digest(data)] = data
        return _digest(data), len(data)

    def descriptor(media_type: str, digest: str, size: int, **more: Any) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size, **more}

    config = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"User": user, "Entrypoint": list(entrypoint), "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": descriptor(_CONFIG, *add(config)),
        "layers": [descriptor(_LAYER, _digest(layer), len(layer))],
    }
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    index = {"schemaVersion": 2, "manifests": [descriptor(_MANIFEST, *add(manifest), annotations=names)]}
    content = {f"blobs/sha256/{digest}": data for digest, data in sorted(blobs.items())}
    content["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    content["index.json"] = json.dumps(index).encode()
    archive.write_bytes(_tar(content))
    return archive


def _architecture() -> str:
    """The name Go and OCI give the machine's processor."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _tar(files: Mapping[str, bytes], mode: int = 0o644) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), mode, _EPOCH_S
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
