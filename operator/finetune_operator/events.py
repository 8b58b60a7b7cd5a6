"""Kubernetes Events of a transition. Their names are a function of what they say, so that none is posted twice."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime
from typing import Any

from finetune_api.common import ObjectMeta
from finetune_operator.api import EVENTS, Api, ApiError
from finetune_operator.decide.types import Event

logger = logging.getLogger(__name__)

CONTROLLER = "finetune.dev/operator"
NOTE_LIMIT = 1000


def event_body(kind: str, about: ObjectMeta, event: Event, instance: str, discriminator: str, now: datetime) -> Any:
    """The Event object. `discriminator` tells two occasions of the same words apart (run, attempt)."""
    words = "/".join((about.uid, discriminator, event.type, event.reason, event.message))
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{about.name}.{digest}", "namespace": about.namespace},
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "reason": event.reason[:128],
        "type": event.type,
        "note": event.message[:NOTE_LIMIT],
        "regarding": {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": kind,
            "name": about.name,
            "namespace": about.namespace,
            "uid": about.uid,
        },
    }


async def post_events(
    api: Api, kind: str, about: ObjectMeta, events: tuple[Event, ...], instance: str, discriminator: str, now: datetime
) -> None:
    """Tell people. An Event that cannot be posted is logged: the status says the same."""
    for event in events:
        try:
            await api.create(EVENTS, event_body(kind, about, event, instance, discriminator, now))
        except ApiError as error:
            if error.status != 409:
                logger.warning("event not posted", extra={"reason": event.reason, "error": str(error)})
