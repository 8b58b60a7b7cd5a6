"""Object storage behind one small interface: `file://` and `s3://`."""

from __future__ import annotations

from uuid import uuid4

from finetune_api.common import SecretRef
from finetune_api.common import Storage as StorageSpec
from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.secret_files import Secrets
from finetune_runner.storage.base import Object, Storage, join
from finetune_runner.storage.files import FileStorage

__all__ = ["Object", "Storage", "join", "open_storage", "probe_conditional_writes"]


def open_storage(
    storage: StorageSpec | str,
    secrets: Secrets,
    *,
    secret_ref: SecretRef | None = None,
    endpoint: str | None = None,
    region: str | None = None,
) -> Storage:
    """The storage behind a URI. Opening makes no request.

    Args:
        storage: the contract's Storage, or a URI (then the keyword arguments say what Storage would).
        secrets: where the Secret's files are.
        secret_ref: Secret with the AWS keys; it may also hold AWS_ENDPOINT_URL and AWS_REGION.
        endpoint: URL of an S3-compatible service.
        region: S3 region.
    """
    if isinstance(storage, StorageSpec):
        uri, secret_ref, endpoint, region = storage.uri, storage.secret_ref, storage.endpoint, storage.region
    else:
        uri = storage
    scheme = uri.partition("://")[0]
    if scheme == "file":
        return FileStorage()
    if scheme == "s3":
        from finetune_runner.storage.s3 import S3Storage, s3_client  # boto3 takes a while to import

        values = secrets.read(secret_ref)
        client = s3_client(
            values,
            endpoint=endpoint or values.get("AWS_ENDPOINT_URL"),
            region=region or values.get("AWS_REGION"),
            secret_name=secret_ref.name if secret_ref else "",
        )
        return S3Storage(client)
    raise StageError(ExitCode.INVALID_SPEC, f"{uri}: storage is s3:// or file://", "use s3://bucket/prefix")


def probe_conditional_writes(storage: Storage, uri: str) -> None:
    """Prove that the store makes an object once: versions and fences rest on it.

    Args:
        storage: the store.
        uri: a folder that may be written to.

    Raises:
        StageError: INVALID_SPEC when a second creation of the same object succeeds.
    """
    probe = join(uri, f"probe-{uuid4().hex}")
    try:
        created = storage.create(probe, b"first")
        again = storage.create(probe, b"second")
        kept = storage.read_bytes(probe)
    finally:
        storage.delete(probe)
    if not created or again or kept != b"first":
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"the object store behind {uri} ignores conditional writes (If-None-Match: *)",
            "use one that honours them (AWS S3, MinIO, Ceph, SeaweedFS); else two writers overwrite each other",
        )
