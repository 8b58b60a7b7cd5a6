"""Token buckets: how often something may happen, for one thing or for each of many. Pure: the clock is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """`per_s` on average, and `burst` at once."""

    per_s: float
    burst: int


class Bucket:
    """One thing's allowance. Times are seconds of whatever clock the caller uses."""

    def __init__(self, rate: Rate, now: float) -> None:
        """Start full."""
        self._rate = rate
        self._level = float(rate.burst)
        self._at = now

    def take(self, now: float) -> float:
        """Take one: 0.0 when there was one, else the seconds until there is."""
        self._level = min(float(self._rate.burst), self._level + max(0.0, now - self._at) * self._rate.per_s)
        self._at = now
        if self._level >= 1.0:
            self._level -= 1.0
            return 0.0
        return (1.0 - self._level) / self._rate.per_s


class Buckets:
    """An allowance for each key, of which the `size` used last are remembered."""

    def __init__(self, rate: Rate, size: int) -> None:
        """A key that was forgotten starts full again: `size` must be larger than the number of honest keys."""
        self._rate = rate
        self._size = size
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float) -> float:
        """Take one of this key's: 0.0 when there was one, else the seconds until there is."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._rate, now)
            if len(self._buckets) > self._size:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket.take(now)
