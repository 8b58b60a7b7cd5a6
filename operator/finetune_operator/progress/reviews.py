"""Whose token it is: asked of the API server (TokenReview), remembered for a short while, wrong ones too."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from finetune_operator.api import TOKEN_REVIEWS, Api, ApiError
from finetune_operator.progress.limits import Bucket, Rate
from finetune_operator.progress.refusal import Refused

POD_UID = "authentication.kubernetes.io/pod-uid"
"""Extra of a token that is bound to a pod; the API server refuses the token once that pod is gone."""
REMEMBERED_S = 60.0
REMEMBERED_REFUSAL_S = 30.0
REMEMBERED = 4096
"""Answers; a cluster has fewer pods that push at one time."""
REVIEWS = Rate(per_s=50.0, burst=200)
"""What strangers may make this replica ask of the API server."""
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Reviewed:
    """What the API server says of a token. Nothing of the token itself is kept."""

    authentic: bool
    pod_uid: str = ""
    """Empty: not bound to a pod."""
    reason: str = ""


def digest(token: str, audience: str) -> str:
    """What a token is known by here."""
    return hashlib.sha256(f"{audience}\0{token}".encode()).hexdigest()


class Answers:
    """Answers by digest, each for its time, the `REMEMBERED` newest. Pure: the clock is an argument."""

    def __init__(self, size: int = REMEMBERED) -> None:
        """Start empty."""
        self._size = size
        self._answers: OrderedDict[str, tuple[float, Reviewed]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str, now: float) -> Reviewed | None:
        """The answer, unless it is too old."""
        found = self._answers.get(key)
        if found is None:
            return None
        until, reviewed = found
        if now >= until:
            del self._answers[key]
            return None
        return reviewed

    def put(self, key: str, reviewed: Reviewed, now: float) -> None:
        """Remember an answer."""
        self._answers[key] = (now + (REMEMBERED_S if reviewed.authentic else REMEMBERED_REFUSAL_S), reviewed)
        self._answers.move_to_end(key)
        if len(self._answers) > self._size:
            self._answers.popitem(last=False)


class Reviews:
    """Asks the API server, seldom."""

    def __init__(self, api: Api, clock: Callable[[], float]) -> None:
        """`clock` counts seconds and never steps back."""
        self._api = api
        self._clock = clock
        self._answers = Answers()
        self._allowance = Bucket(REVIEWS, clock())

    async def review(self, token: str, audience: str) -> Reviewed:
        """Whose token it is. Raises Refused when that cannot be asked now."""
        key = digest(token, audience)
        known = self._answers.get(key, self._clock())
        if known is not None:
            return known
        wait_s = self._allowance.take(self._clock())
        if wait_s:
            raise Refused(429, "reviews", "too many unknown tokens at once; try again", wait_s)
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        try:
            # Not guarded: a question changes nothing, and every replica asks.
            answer = await self._api.request(
                "POST", TOKEN_REVIEWS.path(), body=body, timeout_s=TIMEOUT_S, attempts=1, guarded=False
            )
        except ApiError as error:
            raise Refused(503, "review-failed", f"the token cannot be checked now: {error}", 10.0) from error
        reviewed = _reviewed(answer.get("status") or {}, audience)
        self._answers.put(key, reviewed, self._clock())
        return reviewed


def _reviewed(status: dict[str, object], audience: str) -> Reviewed:
    audiences, user = status.get("audiences"), status.get("user")
    if not status.get("authenticated"):
        return Reviewed(False, reason=f"the token is not valid for audience {audience}")
    if not isinstance(audiences, list) or audience not in audiences or not isinstance(user, dict):
        return Reviewed(False, reason=f"the token is not for audience {audience}")
    extra = user.get("extra") or {}
    uids = extra.get(POD_UID) or [""]
    return Reviewed(True, pod_uid=str(uids[0]))
