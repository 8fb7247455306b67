"""What all protocols share: a request gets a version, runs in a batch, is bounded in time, counted and logged."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from mlcore.serving.server.batcher import Batcher
from mlcore.serving.server.errors import Code, RequestError
from mlcore.serving.server.metrics import Metrics
from mlcore.serving.server.repository import Repository, Version
from mlcore.serving.server.request_log import RequestLog
from mlcore.serving.server.signature import Array, Arrays, Signature

log = logging.getLogger(__name__)

_ID_LENGTH = 200


class Service:
    """The model behind every protocol.

    Args:
        repository: The served versions.
        batcher: Runs requests together.
        metrics: Counts them.
        request_log: Keeps them; None: nothing is kept.
    """

    def __init__(
        self,
        repository: Repository,
        batcher: Batcher,
        metrics: Metrics,
        request_log: RequestLog | None,
    ) -> None:
        self.repository = repository
        self.batcher = batcher
        self.metrics = metrics
        self.request_log = request_log
        self.stopping = False
        self.in_flight = 0
        self.answered = 0
        self.refused = 0
        metrics.queue.labels(metrics.model).set_function(lambda: batcher.waiting)
        metrics.in_flight.labels(metrics.model).set_function(lambda: self.in_flight)

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.repository.ready and not self.stopping

    def request(self, protocol: str, request_id: str | None = None) -> "Request":
        """A request that came in, as a context: it is counted when the context ends."""
        return Request(self, protocol, request_id)


class Request:
    """A request in work.

    Attributes:
        id: Its id: the client's, or a new one.
        version: The version that answers it, once it was chosen.
        error: What it was refused with.
    """

    __slots__ = ("code", "entry", "id", "protocol", "service", "started", "version")

    def __init__(self, service: Service, protocol: str, request_id: str | None) -> None:
        self.service = service
        self.protocol = protocol
        self.id = request_id[:_ID_LENGTH] if request_id else f"{random.getrandbits(128):032x}"
        self.version: Version | None = None
        self.code = Code.INTERNAL
        self.entry: dict[str, Any] | None = None

    def __enter__(self) -> "Request":
        self.started = time.perf_counter()
        self.service.in_flight += 1
        return self

    def rename(self, request_id: str) -> str:
        """Take the id that came inside the request; what it is from now on."""
        if request_id.isascii() and request_id.isprintable():
            self.id = request_id[:_ID_LENGTH]
        return self.id

    def choose(self, model: str, number: int | None) -> Version:
        """The version that answers.

        Raises:
            RequestError: There is none.
        """
        self.version = self.service.repository.acquire(model, number, self.id)
        return self.version

    def signature(self, name: str | None) -> Signature:
        """The signature of the chosen version with this name, or its default.

        Raises:
            RequestError: It has none of that name.
        """
        assert self.version is not None
        model = self.version.model
        signature = model.signatures.get(name or model.default_signature)
        if signature is None:
            raise RequestError(
                f"signature {name!r}: version {self.version.number} of {self.service.repository.name!r} has "
                f"{', '.join(sorted(model.signatures))}"
            )
        return signature

    async def run(
        self, signature: Signature, inputs: Arrays, timeout_s: float | None = None, *, examples: int | None = None
    ) -> dict[str, Array]:
        """The model's outputs.

        Args:
            signature: How to call it.
            inputs: Its inputs.
            timeout_s: Time that the client gives, where it does.
            examples: How many examples are in inputs that are known to fit; None: they are checked here.

        Raises:
            RequestError: The inputs do not fit, the queue is full or the time is up.
        """
        version = self.version
        assert version is not None
        service = self.service
        if examples is None:
            examples = signature.check(inputs)
        name = signature.name
        number = version.number
        run = version.model.run
        outputs = await service.batcher.call(
            (version, name),
            lambda values: run(name, values),
            inputs,
            examples,
            joinable=signature.joinable,
            one_size=signature.one_size,
            timeout_s=timeout_s,
            observe=lambda size: service.metrics.observe_batch(number, size),
        )
        if service.request_log is not None:
            self.entry = {"signature": name, "inputs": inputs, "outputs": outputs}
        return outputs

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        service = self.service
        service.in_flight -= 1
        seconds = time.perf_counter() - self.started
        if error is None:
            self.code = Code.OK
            service.answered += 1
        else:
            service.refused += 1
            if isinstance(error, RequestError):
                self.code = error.code
            elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):  # the latter at the end of the process
                self.code = Code.CANCELLED
            else:
                log.error("request %s failed: this is a bug in mlcore", self.id, exc_info=error)
        version = self.version
        number = None if version is None else version.number
        service.metrics.request(number, self.protocol, self.code.name, seconds)
        if version is not None:
            service.repository.release(version)
        if self.entry is not None and error is None and service.request_log is not None:
            service.request_log.write({
                "id": self.id, "time": time.time(), "model": service.repository.name, "version": number,
                "protocol": self.protocol, "latency_ms": round(seconds * 1000, 3), **self.entry,
            })  # fmt: skip


def described(signature: Signature) -> Mapping[str, Any]:
    """A signature for people: names, types and shapes."""
    return {
        side: {spec.name: {"dtype": spec.dtype_text, "shape": spec.shape_text} for spec in specs.values()}
        for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
