"""The runner image cannot be pulled."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState

_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)


def _waiting(pod: PodState) -> str | None:
    if pod.waiting_reason in _REASONS:
        return f"pod {pod.name}: {pod.waiting_reason} {pod.waiting_message[:300]}".rstrip()
    return None


CAUSE = Cause(
    name="ImagePull",
    retry="never",
    hint="The platform team has to correct the image of the GPUPool (name, digest, pull secret).",
    sign=_waiting,
    precedence=40,
)
