"""The harness' object store keeps the promises releases rest on: one winner per name, no write without the right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from tests.cluster.harness.s3 import S3Server


def test_of_many_conditional_creates_exactly_one_wins(s3: S3Server) -> None:
    bucket = s3.make_bucket()
    stores = [s3.client() for _ in range(16)]

    def claim(number: int) -> int:
        try:
            stores[number].put_object(
                Bucket=bucket, Key="versions/v1/claim.json", Body=str(number).encode(), IfNoneMatch="*"
            )
        except ClientError as error:
            return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        return 200

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(claim, range(16)))
    assert sorted(answers) == [200, *[412] * 15]
    assert (
        s3.client().get_object(Bucket=bucket, Key="versions/v1/claim.json")["Body"].read()
        == str(answers.index(200)).encode()
    )


def test_the_read_only_identity_reads_and_cannot_write(s3: S3Server) -> None:
    bucket = s3.make_bucket()
    s3.client().put_object(Bucket=bucket, Key="a", Body=b"1")
    reader = s3.client(s3.read_only)
    assert reader.get_object(Bucket=bucket, Key="a")["Body"].read() == b"1"
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put_object(Bucket=bucket, Key="a", Body=b"2")


def test_objects_survive_a_restart_of_the_store() -> None:
    with S3Server() as own:
        bucket = own.make_bucket()
        own.client().put_object(Bucket=bucket, Key="a", Body=b"1")
        own.stop()
        with pytest.raises(EndpointConnectionError):
            own.client().get_object(Bucket=bucket, Key="a")
        own.start()
        assert own.client().get_object(Bucket=bucket, Key="a")["Body"].read() == b"1"
