"""Storage on S3 or anything that speaks its protocol."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
)
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import FULL_DISK_ERRNOS, StageError, disk_full
from finetune_runner.storage.base import Object

# Three attempts of 5 s to connect or 15 s without a byte: whatever does not answer is reported within a minute.
_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 15
_ATTEMPTS = 3
_CONFLICT_ATTEMPTS = 5
_PART_BYTES = 16 << 20
_TRANSFER = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4)

_NOT_FOUND = frozenset({"NoSuchBucket", "NoSuchKey", "NotFound", "404"})
_DENIED = frozenset(
    {
        "AccessDenied", "Forbidden", "403", "401", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
        "InvalidToken", "AllAccessDisabled", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed",
    }
)  # fmt: skip
_TRANSFER_ERRORS = (RetriesExceededError, S3DownloadFailedError)
"""Which boto3 does not make its own; the second: the object was replaced between two parts."""
_FULL = frozenset({"XMinioStorageFull", "QuotaExceeded", "507"})
_WRITER = "finetune-writer"
_READ = "s3:GetObject, and s3:ListBucket (without it S3 denies access to what does not exist)"
_WRITE = "s3:PutObject"
_CREATE = "s3:PutObject, s3:GetObject"
_LIST = "s3:ListBucket"
_DELETE = "s3:DeleteObject"
"""Actions of IAM that a denied request needs."""


def s3_client(values: Mapping[str, str], *, endpoint: str | None, region: str | None, secret_name: str) -> Any:
    """A boto3 client with bounded waiting.

    Args:
        values: keys of the Secret; empty = the environment's identity.
        endpoint: URL of the service; None = AWS, or AWS_ENDPOINT_URL of the environment.
        region: region; None = the environment's, else us-east-1.
        secret_name: for messages.

    Raises:
        StageError: ACCESS_DENIED when the Secret holds only one of the two keys.
    """
    key, secret = values.get("AWS_ACCESS_KEY_ID"), values.get("AWS_SECRET_ACCESS_KEY")
    if bool(key) != bool(secret):
        raise StageError(
            ExitCode.ACCESS_DENIED,
            f"Secret {secret_name} has only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            "set both keys",
        )
    session = boto3.session.Session(
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=values.get("AWS_SESSION_TOKEN"),
        region_name=region,
    )
    return session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=session.region_name or "us-east-1",
        config=Config(
            signature_version="s3v4",
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            # Older S3-compatible services refuse the optional trailing checksums; ours are in the manifests.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if endpoint else "auto"},
        ),
    )


class S3Storage:
    """Storage whose objects are S3 objects; creation is `If-None-Match: *`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def read_bytes(self, uri: str) -> bytes:
        """See Storage."""
        bucket, key = split(uri)
        with self._typed(uri, _READ):
            return cast(bytes, self._client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def open_read(self, uri: str) -> BinaryIO:
        """See Storage. The object is copied to a temporary file first: a broken connection is retried part by part."""
        bucket, key = split(uri)
        stream = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            with self._typed(uri, _READ):
                self._client.download_fileobj(bucket, key, stream, Config=_TRANSFER)
            stream.seek(0)
        except BaseException:
            stream.close()
            raise
        return cast(BinaryIO, stream)

    def write_bytes(self, uri: str, data: bytes) -> None:
        """See Storage."""
        bucket, key = split(uri)
        with self._typed(uri, _WRITE):
            self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def upload_file(self, path: Path, uri: str) -> None:
        """See Storage."""
        bucket, key = split(uri)
        with self._typed(uri, _WRITE):
            self._client.upload_file(str(path), bucket, key, Config=_TRANSFER)

    def download_file(self, uri: str, path: Path, got: Callable[[int], None] | None = None) -> None:
        """See Storage."""
        bucket, key = split(uri)
        with self._typed(uri, _READ):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._client.download_file(bucket, key, str(path), Config=_TRANSFER, Callback=got)

    def create(self, uri: str, data: bytes) -> bool:
        """See Storage.

        A request that succeeded but whose answer was lost is sent again and then meets its own object: the object
        carries who wrote it, so that this counts as ours.
        """
        bucket, key = split(uri)
        writer = uuid4().hex
        with self._typed(uri, _CREATE):
            for _ in range(_CONFLICT_ATTEMPTS):
                try:
                    self._client.put_object(
                        Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={_WRITER: writer}
                    )
                except ClientError as error:
                    status = _status(error)
                    if status == 409:  # another writer is under way: S3 asks to try again
                        continue
                    if status == 412:
                        head = self._client.head_object(Bucket=bucket, Key=key)
                        return bool(head.get("Metadata", {}).get(_WRITER) == writer)
                    raise
                return True
        return False

    def exists(self, uri: str) -> bool:
        """See Storage."""
        bucket, key = split(uri)
        with self._typed(uri, _READ):
            try:
                self._client.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if _status(error) == 404:
                    return False
                raise
        return True

    def list(self, prefix_uri: str) -> list[Object]:
        """See Storage."""
        bucket, prefix = split(prefix_uri)
        with self._typed(prefix_uri, _LIST):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            found = [
                Object(f"s3://{bucket}/{item['Key']}", int(item["Size"]), str(item.get("ETag", "")))
                for page in pages
                for item in page.get("Contents", [])
            ]
        return sorted(found, key=lambda item: item.uri)

    def delete(self, uri: str) -> None:
        """See Storage."""
        bucket, key = split(uri)
        with self._typed(uri, _DELETE):
            self._client.delete_object(Bucket=bucket, Key=key)

    @contextmanager
    def _typed(self, uri: str, needed: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error, *_TRANSFER_ERRORS, OSError) as error:
            raise _stage_error(error, uri, str(self._client.meta.endpoint_url), needed) from error


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI. Raises StageError (INVALID_SPEC) for anything else."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise StageError(ExitCode.INVALID_SPEC, f"{uri} is not an S3 address", "write s3://bucket/prefix")
    return bucket, key


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _stage_error(error: Exception, uri: str, endpoint: str, needed: str) -> StageError:
    if isinstance(error, Boto3Error) and isinstance(error.__context__, ClientError):
        error = error.__context__
    evidence = f"{type(error).__name__}: {error}"[:500]
    where = f"bucket {uri.removeprefix('s3://').partition('/')[0]} at {endpoint}"
    if isinstance(error, ClientError):
        code, status = str(error.response.get("Error", {}).get("Code", "")), _status(error)
        if code in _NOT_FOUND:
            what = f"{where} does not exist" if code == "NoSuchBucket" else f"{uri} does not exist at {endpoint}"
            return StageError(ExitCode.SOURCE_NOT_FOUND, what, "check the name and the endpoint", evidence)
        if code in _DENIED or status in (401, 403):
            return StageError(
                ExitCode.ACCESS_DENIED,
                f"access to {where} is denied ({code})",
                f"check the keys of the Secret (or the service account's role); needed for {uri}: {needed}",
                evidence,
            )
        if code in _FULL:
            return disk_full(where, evidence)
        if status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException"):
            return _unavailable(where, evidence)
        return StageError(
            ExitCode.INVALID_SPEC,
            f"{where} refuses the request ({code})",
            "check storage.uri, endpoint and region",
            evidence,
        )
    if isinstance(error, S3DownloadFailedError):
        return StageError(
            ExitCode.STORAGE_UNAVAILABLE,
            f"{uri} was replaced while it was read",
            "let whatever writes it finish, or write to another key; it is tried again",
            evidence,
        )
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return StageError(
            ExitCode.ACCESS_DENIED,
            f"no credentials for {where}",
            "set secretRef, or give the service account a role",
            evidence,
        )
    if isinstance(error, ParamValidationError | NoRegionError):
        return StageError(ExitCode.INVALID_SPEC, f"{uri}: {error}"[:500], "check the bucket's name", evidence)
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
        return disk_full(error.filename or f"the copy of {uri}", evidence)
    return _unavailable(where, evidence)


def _unavailable(where: str, evidence: str) -> StageError:
    return StageError(
        ExitCode.STORAGE_UNAVAILABLE,
        f"{where} does not answer",
        "check the endpoint and the network; it is tried again",
        evidence,
    )
