"""oci:// sources: where the image's reference ends and the path begins."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.oci import OCI, parse_image_source

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("source", "reference", "path"),
    [
        ("oci://ghcr.io/team/llama", "ghcr.io/team/llama", ""),
        ("oci://ghcr.io/team/llama:v1", "ghcr.io/team/llama:v1", ""),
        ("oci://ghcr.io/team/llama:v1/", "ghcr.io/team/llama:v1", ""),
        ("oci://localhost:5000/llama:v1/model/8b", "localhost:5000/llama:v1", "model/8b"),
        (f"oci://ghcr.io/llama@{DIGEST}/a b.jsonl", f"ghcr.io/llama@{DIGEST}", "a b.jsonl"),
        ("oci://h/a/b/c:V_1.x-y/d:e@f", "h/a/b/c:V_1.x-y", "d:e@f"),
    ],
)
def test_a_source_is_a_reference_and_a_path(source: str, reference: str, path: str) -> None:
    assert re.fullmatch(OCI, source)
    found = parse_image_source(source)
    assert (found.reference, found.path) == (reference, path)


@pytest.mark.parametrize(
    "source", ["oci://ghcr.io", "oci://ghcr.io/", "oci://Ghcr.io/a", "oci://h/A", "oci://h/a:", "oci://h/a@sha256:1", "s3://b/k"]
)  # fmt: skip
def test_what_is_no_reference_is_refused(source: str) -> None:
    assert re.fullmatch(OCI, source) is None
    with pytest.raises(ValueError, match="write oci://registry/image:tag/path"):
        parse_image_source(source)


@given(st.from_regex(OCI, fullmatch=True))
def test_every_source_that_is_accepted_can_be_mounted(source: str) -> None:
    found = parse_image_source(source)
    assert source.removeprefix("oci://").startswith(found.reference)
    assert re.fullmatch("[0-9a-f]{16}", found.mount_name)
    assert not found.path.startswith("/")
