"""Objects as they change: list, then watch, then both again whenever the server or the network says so."""

import json
import logging
import queue
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mlcore.kubeflow.answers import Expired, Request
from mlcore.kubeflow.cluster import Cluster, Object, Resource
from mlcore.runtime.errors import MlcoreError, TransientError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What happened to an object.

    Attributes:
        objects: The objects that are there, of a listing; else the one that was added, changed or deleted.
        deleted: Whether it was deleted.
        listed: Whether these are all objects that there are.
    """

    objects: tuple[Object, ...]
    deleted: bool = False
    listed: bool = False


class Watch:
    """The changes of the objects that selectors name.

    Args:
        cluster: Where.
        resource: Their kind.
        namespace: Their namespace.
        name: Name of the only one.
        labels: Label selector.
    """

    def __init__(
        self, cluster: Cluster, resource: Resource, namespace: str, *, name: str = "", labels: str = ""
    ) -> None:
        self._cluster, self._resource, self._namespace = cluster, resource, namespace
        self._selectors = {}
        if name:
            self._selectors["fieldSelector"] = f"metadata.name={name}"
        if labels:
            self._selectors["labelSelector"] = labels
        self._version = ""

    def changes(self) -> Iterator[Change]:
        """Every change, until the cluster is closed.

        Raises:
            TransientError: The server has not answered for too long.
            MlcoreError: The server refuses.
        """
        timing = self._cluster.timing
        answered = time.monotonic()
        wait_s = timing.backoff_s
        while not self._cluster.is_closed:
            try:
                if not self._version:
                    listing = self._cluster.list(self._resource, self._namespace, self._selectors)
                    self._version = listing["metadata"]["resourceVersion"]
                    answered = time.monotonic()
                    yield Change(tuple(listing["items"]), listed=True)
                began = time.monotonic()
                for change in self._watch():
                    if self._cluster.is_closed:
                        return
                    answered, wait_s = time.monotonic(), timing.backoff_s
                    if change is not None:
                        yield change
                answered = time.monotonic()
                if answered - began < wait_s:  # a server that ends every watch at once is not to be overrun
                    time.sleep(wait_s - (answered - began))
            except Expired:
                log.info(
                    "%s: the server has forgotten the version %s, listing again", self._resource.plural, self._version
                )
                self._version = ""
                answered = time.monotonic()
            except TransientError as error:
                if self._cluster.is_closed:
                    return
                if time.monotonic() - answered > timing.outage_s:
                    raise TransientError(f"{error} (for {timing.outage_s:.0f} s)") from error
                log.warning("%s; watching %s again in %.1f s", error, self._resource.plural, wait_s)
                time.sleep(wait_s * random.uniform(0.5, 1))
                wait_s = min(2 * wait_s, timing.backoff_max_s)

    def _watch(self) -> Iterator[Change | None]:
        """The changes of one watch, until the server ends it; None for a bookmark.

        Raises:
            Expired: List again.
            TransientError: The connection broke.
        """
        timing = self._cluster.timing
        query = {
            **self._selectors,
            "watch": "true",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(timing.watch_s),
        }
        request = Request("watch", self._resource, self._namespace, query=query)
        answer = self._cluster.stream(request, silence_s=timing.watch_s + timing.connect_s)
        for line in answer.lines():
            if not line.endswith(b"\n"):
                return  # cut in the middle; it comes again
            event = _event(line, self._cluster.host)
            kind, found = event["type"], event["object"]
            if kind == "ERROR":
                message = f"{self._cluster.host}: {found.get('message') or found.get('reason') or 'error'}"
                if found.get("code") == 410:
                    raise Expired(message)
                raise TransientError(message)
            self._version = found["metadata"]["resourceVersion"]
            yield None if kind == "BOOKMARK" else Change((found,), deleted=kind == "DELETED")


def _event(line: bytes, host: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
        if isinstance(event, dict) and isinstance(event["object"], dict) and "type" in event:
            return event
    except (ValueError, KeyError):
        pass
    raise TransientError(f"{host}: a watch brought {line[:60]!r}, expected an event")


@dataclass
class Feed:
    """Several watches, each in a thread of its own, as one queue."""

    _queue: "queue.Queue[tuple[str, Change | MlcoreError | Exception]]" = field(default_factory=queue.Queue)

    def add(self, source: str, watch: Watch) -> None:
        """Begin to watch."""
        threading.Thread(target=self._pump, args=(source, watch), daemon=True).start()

    def _pump(self, source: str, watch: Watch) -> None:
        try:
            for change in watch.changes():
                self._queue.put((source, change))
        except Exception as error:
            self._queue.put((source, error))

    def next(self, timeout_s: float) -> tuple[str, Change | Exception] | None:
        """The next change with its source, or the error that ended a watch; None if nothing came in time."""
        try:
            return self._queue.get(timeout=max(timeout_s, 0.001))
        except queue.Empty:
            return None
