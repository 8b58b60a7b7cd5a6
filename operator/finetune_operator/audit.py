"""A second look at what the watches told: kopf reports no deletion it missed, and a watch may die without a sign."""

from __future__ import annotations

import logging
from collections.abc import Callable

from finetune_operator.api import Api
from finetune_operator.reconcile import Item
from finetune_operator.store import number
from finetune_operator.watch import Source, Watches

logger = logging.getLogger(__name__)


class Audit:
    """Compares lists with the store: removes what is gone, and notices a watch that has fallen behind."""

    def __init__(self, api: Api, watches: Watches, enqueue: Callable[[Item], None]) -> None:
        """Keys of what had vanished unseen are handed to `enqueue`."""
        self._api = api
        self._watches = watches
        self._enqueue = enqueue
        self._behind: dict[str, set[str]] = {}

    async def run(self, namespaces: list[str] | None) -> list[str]:
        """One pass; the plurals of kinds whose watch was behind in this pass and the one before, on the same object."""
        dead = []
        for source in self._watches.sources:
            behind = await self._one(source, namespaces)
            if behind & self._behind.get(source.resource.plural, set()):
                dead.append(source.resource.plural)
            self._behind[source.resource.plural] = behind
        return dead

    async def _one(self, source: Source, namespaces: list[str] | None) -> set[str]:
        seen: dict[str, int] = {}
        versions = []
        places: list[str | None] = [None]
        if namespaces and source.resource.namespaced:
            places = list(namespaces)
        for namespace in places:
            first = True
            async for page in self._api.pages(source.resource, namespace, source.selector, metadata_only=True):
                if first:
                    # Later pages are of the same moment or newer: the first one's version is the safe one.
                    versions.append(number(page.get("metadata", {}).get("resourceVersion")))
                    first = False
                for body in page.get("items") or []:
                    metadata = body["metadata"]
                    seen[metadata["uid"]] = number(metadata.get("resourceVersion"))
        for entry in source.table.missing_from(seen, min(versions)):
            logger.warning("deletion was missed", extra={"resource": source.resource.plural, "key": str(entry.key)})
            source.table.remove(entry.key, entry.uid)
            for item in self._watches.concerned(source, entry):
                self._enqueue(item)
        return set(source.table.behind(seen))
