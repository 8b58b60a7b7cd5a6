"""One object as it changes: list, watch, and again from the start when the watch breaks or the server forgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finetune_cli.cluster.api import JSON, WATCH_S
from finetune_cli.cluster.connection import Connection
from finetune_cli.cluster.refusals import Refusal, explain
from finetune_cli.cluster.resources import Resource
from finetune_cli.errors import CliError, CliExit

FIRST_DELAY_S = 0.25
LARGEST_DELAY_S = 8.0
PATIENCE_S = 300.0
"""How long an API server may be gone before following it ends. A rolling upgrade takes less."""


@dataclass
class Patience:
    """Pauses between tries that grow, up to a limit of silence. `clock` gives seconds that only grow."""

    on_trouble: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    limit_s: float = PATIENCE_S
    _delay_s: float = FIRST_DELAY_S
    _since: float | None = None
    _told: bool = False
    _was_fine: bool = False

    def fine(self) -> None:
        """The server answered."""
        if self._told:
            self.on_trouble("the API server answers again")
        self._since, self._told, self._delay_s = None, False, FIRST_DELAY_S
        self._was_fine = True

    def trouble(self, refusal: Refusal) -> None:
        """It did not: wait a little. Raises the refusal when it has been so for too long, or never will change."""
        if refusal.code == 410:
            return
        # An API server that has just started refuses everybody until it has read its roles: a right that was there a
        # moment ago is waited for.
        forgotten = self._was_fine and refusal.code in (401, 403)
        if not refusal.passing and not forgotten:
            raise refusal
        if self._since is None:
            # A watch that was cut is nothing to talk about: proxies do it every minute.
            self._since = self.clock()
        elif self.clock() - self._since > self.limit_s:
            raise refusal
        elif not self._told:
            self._told = True
            self.on_trouble(f"the API server does not answer ({refusal.message or refusal.code}); trying again")
        self.pause(self._delay_s)
        self._delay_s = min(LARGEST_DELAY_S, self._delay_s * 2)


def _changes(
    connection: Connection, resource: Resource, name: str, patience: Patience, look_every_s: int
) -> Iterator[JSON | None]:
    """The object now and after each change; None when it is not there, and again and again while nothing changes."""
    while True:
        try:
            fields = f"metadata.name={name}"
            listed = connection.api.list(resource, connection.namespace, fields=fields)
            patience.fine()
            yield from listed["items"][:1] or [None]
            last: JSON | None = next(iter(listed["items"]), None)
            version = listed["metadata"]["resourceVersion"]
            while True:
                events = connection.api.watch(
                    resource, connection.namespace, version, fields=fields, seconds=look_every_s
                )
                for kind, item in events:
                    version = item["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        last = None if kind == "DELETED" else item
                        yield last
                yield last
        except Refusal as refusal:
            try:
                patience.trouble(refusal)
            except Refusal as final:
                raise explain(final, "watch", resource, connection.namespace, name, connection.api.server) from final


def follow(
    connection: Connection,
    resource: Resource,
    name: str,
    on_trouble: Callable[[str], None],
    look_every_s: int = WATCH_S,
    patience_s: float = PATIENCE_S,
) -> Iterator[JSON]:
    """The object after each change, and at least every `look_every_s` seconds; survives restarts of the API server.

    Raises CliError when it has been deleted, or the server was gone for longer than `patience_s`.
    """
    uid = ""
    patience = Patience(on_trouble, limit_s=patience_s)
    for item in _changes(connection, resource, name, patience, look_every_s):
        if item is None or (uid and item["metadata"]["uid"] != uid):
            raise CliError(
                f"{resource.kind} {name} has been deleted" + (" and made anew" if item is not None else ""),
                f"`{connection.command('list')}` shows what there is.",
                CliExit.FAILED,
            )
        uid = item["metadata"]["uid"]
        yield item
