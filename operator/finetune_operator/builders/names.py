"""Names of children: a function of identity, so that a second attempt to create one meets the first."""

from __future__ import annotations

import base64
import hashlib

HASH_CHARACTERS = 7


def job_name(job: str, uid: str, run: int, stage: str, attempt: int) -> str:
    """`<job>-<hash of uid and run>-<stage>-<attempt>`: at most 63 characters with a pod index for jobs of 40."""
    digest = hashlib.sha256(f"{uid}/{run}".encode()).digest()
    return f"{job}-{base64.b32encode(digest).decode().lower()[:HASH_CHARACTERS]}-{stage}-{attempt}"
