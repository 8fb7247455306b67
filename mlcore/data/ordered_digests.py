"""SHA-256 of whole files, computed in a second thread while the first goes on; they come back in the order put in."""

import hashlib
import queue
import threading
from types import TracebackType
from typing import Self


class OrderedDigests:
    """Hashes one piece of data after the other; a context manager, which ends the thread.

    hashlib lets go of the interpreter's lock, so this takes the hashing off the clock where a core is idle.
    """

    def __init__(self) -> None:
        self._todo: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)

    def _run(self) -> None:
        while (data := self._todo.get()) is not None:
            self._done.put(hashlib.sha256(data).hexdigest().encode())

    def put(self, data: bytes) -> None:
        """Have this hashed."""
        self._todo.put(data)

    def next(self) -> bytes:
        """The digest, in hexadecimal, of the first of what was put in and not yet taken out."""
        return self._done.get()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._todo.put(None)
        self._thread.join()
