"""kserve's ModelServer with our model in it: its application, V2 service and metrics page, our routes before its own.

What is ours and not kserve's, since kserve has none of it: versions in V1 and V2, TensorFlow Serving's answers in V1,
request ids, a bound on bodies, errors that name the field and leave no traceback in the log, a stop that loses nothing.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import grpc
import uvicorn
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mlcore.runtime.errors import UsageError


@contextlib.contextmanager
def _no_arguments() -> Iterator[None]:
    """Hide our command line: kserve reads sys.argv when it is imported."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        yield
    finally:
        sys.argv = arguments


with _no_arguments():
    import kserve
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
    from kserve.protocol.rest.server import RESTServer

from mlcore.serving.server.errors import Code, RequestError  # noqa: E402 kserve must not see our command line
from mlcore.serving.server.grpc_common import health_handler  # noqa: E402
from mlcore.serving.server.grpc_v2 import REPOSITORY, Servicer  # noqa: E402
from mlcore.serving.server.http import Bounded, error_response  # noqa: E402
from mlcore.serving.server.http_protocol import Predictions, Protocol  # noqa: E402
from mlcore.serving.server.rest_v1 import V1  # noqa: E402
from mlcore.serving.server.rest_v2 import V2  # noqa: E402
from mlcore.serving.server.service import Service  # noqa: E402

_STATUS = {400: Code.INVALID_ARGUMENT, 404: Code.NOT_FOUND, 501: Code.UNIMPLEMENTED, 503: Code.UNAVAILABLE}


class _Model(kserve.Model):  # type: ignore[misc]
    """What kserve's registry holds: it answers kserve's own questions (which models, ready?)."""

    def __init__(self, name: str, service: Service) -> None:
        super().__init__(name)
        self.service = service
        self.ready = True

    async def healthy(self) -> bool:
        """Whether it answers."""
        return self.service.ready


class _Registry(kserve.ModelRepository):  # type: ignore[misc]
    """kserve's registry, which clients cannot change."""

    def load(self, name: str) -> bool:
        """Refused."""
        raise NotImplementedError(REPOSITORY)

    def unload(self, name: str) -> None:
        """Refused."""
        raise NotImplementedError(REPOSITORY)


class _DataPlane(DataPlane):  # type: ignore[misc]
    """kserve's, ready when the model is."""

    def __init__(self, registry: Any, service: Service) -> None:
        super().__init__(registry)
        self.service = service

    async def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.service.ready


class _Uvicorn(uvicorn.Server):
    """uvicorn that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: `serve` has a flag for them."""
        yield


class _Rest(RESTServer):  # type: ignore[misc]
    """kserve's REST server with our routes before its own."""

    def __init__(self, service: Service, max_bytes: int, max_held: float, **options: Any) -> None:
        super().__init__("kserve.model_server:app", **options)
        self.service = service
        self.max_bytes, self.max_held = max_bytes, max_held
        logging.getLogger("uvicorn.access").propagate = False  # else each request's line is made, and then not written
        self.config.proxy_headers = False  # nobody here asks where a request came from
        self.config.log_level = "warning"
        self.v1, self.v2 = V1(service), V2(service)
        self._server = _Uvicorn(self.config)

    def _register_endpoints(self, app: Any) -> None:
        app.router.routes[:] = [*self.v1.routes(), *self.v2.routes()]
        super()._register_endpoints(app)

    def _add_exception_handlers(self, app: Any) -> None:
        """Errors of kserve's own routes, too, as {"error": ...}; without a traceback for what a client did wrong."""
        super()._add_exception_handlers(app)
        for kind in (kserve.errors.InvalidInput, kserve.errors.ModelNotFound, kserve.errors.ModelNotReady,
                     kserve.errors.ServerNotReady, NotImplementedError, RequestError):  # fmt: skip
            app.add_exception_handler(kind, _quiet)
        app.add_exception_handler(404, _no_route)
        app.add_exception_handler(405, _no_route)

    def _add_middlewares(self, app: Any) -> None:
        """In place of kserve's, which logs the time of each request."""
        app.middleware_stack = None  # that of an earlier server in this process
        app.user_middleware.clear()

    def create_application(self) -> None:
        """Kserve's application, with a bound on bodies, and our short way for predictions beside it."""
        super().create_application()
        self.config.app = Bounded(kserve.model_server.app, self.max_bytes)
        predictions = Predictions({**self.v1.predictions(), **self.v2.predictions()}, self.max_bytes, self.max_held)
        self.config.http = functools.partial(Protocol, predictions)

    async def serve(self, listener: socket.socket) -> None:
        """Answer until `stop`."""
        warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # kserve's choice
        self.create_application()
        await self._server.serve(sockets=[listener])

    @property
    def started(self) -> bool:
        """Whether it listens."""
        return self._server.started

    def stop(self) -> None:
        """Take no new connections; end when what is in work is answered."""
        self._server.should_exit = True


async def _quiet(_request: HttpRequest, error: Exception) -> Response:
    if isinstance(error, RequestError):
        return error_response(error)
    codes = {
        kserve.errors.InvalidInput: 400, kserve.errors.ModelNotFound: 404, NotImplementedError: 501,
        kserve.errors.ModelNotReady: 503, kserve.errors.ServerNotReady: 503,
    }  # fmt: skip
    return error_response(RequestError(str(error), _STATUS[codes[type(error)]]))


async def _no_route(request: HttpRequest, _error: Exception) -> Response:
    message = f"Malformed request: {request.method} {request.url.path}"
    return error_response(RequestError(message, Code.NOT_FOUND))


class ModelServer(kserve.ModelServer):  # type: ignore[misc]
    """kserve's server around a service, and TensorFlow Serving's gRPC interface beside it.

    Args:
        service: What answers.
        name: Name of the model.
        host: Address to listen on.
        ports: Of HTTP, V2 gRPC and TensorFlow Serving's gRPC; 0: any free one.
        max_bytes: Most bytes of a request.
        drain_s: Most seconds to finish what is in work.
    """

    def __init__(
        self, service: Service, name: str, *, host: str, ports: tuple[int, int, int], max_bytes: int, drain_s: float
    ) -> None:
        logging.getLogger("kserve").addHandler(logging.NullHandler())  # else kserve configures its own
        super().__init__(
            http_port=ports[0], grpc_port=ports[1], registered_models=_Registry(), enable_latency_logging=False
        )
        self.service = service
        self.host = host
        self.max_bytes = max_bytes
        self.drain_s = drain_s
        self.registered_models.update(_Model(name, service))
        self.dataplane = _DataPlane(self.registered_models, service)
        self._listener = _listen(host, ports[0])
        self._http = _Rest(
            service, max_bytes, service.batcher.max_bytes, data_plane=self.dataplane,
            model_repository_extension=self.model_repository_extension, http_port=ports[0],
            grace_period=max(int(drain_s), 1),
        )  # fmt: skip
        self._grpc_servers: list[grpc.aio.Server] = []
        self._ports = ports
        self._name = name

    async def begin(self) -> tuple[int, int, int]:
        """Listen on all ports; their numbers.

        Raises:
            UsageError: One is taken.
        """
        from tensorflow_serving.apis import model_service_pb2_grpc

        from mlcore.serving.server.grpc_tfs import SERVICE, ModelService, PredictionService

        v2, tfs = self._new_grpc(), self._new_grpc()
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            Servicer(self.service, self.dataplane, self.model_repository_extension), v2
        )
        PredictionService(self.service).add_to(tfs)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self.service), tfs)
        names = (
            (v2, "--grpc-port", self._ports[1], "inference.GRPCInferenceService"),
            (tfs, "--tfs-port", self._ports[2], SERVICE),
        )
        bound = [self._listener.getsockname()[1]]
        for server, flag, port, service in names:
            server.add_generic_rpc_handlers((health_handler(lambda: self.service.ready, (service, self._name)),))
            try:
                host = f"[{self.host}]" if ":" in self.host else self.host
                bound.append(server.add_insecure_port(f"{host}:{port}"))
            except RuntimeError as error:
                raise UsageError(f"{flag}={port}: cannot listen on {self.host}:{port}; is it in use?") from error
        for server in (v2, tfs):
            await server.start()
            self._grpc_servers.append(server)
        self.serving = asyncio.create_task(self._http.serve(self._listener))
        while not self._http.started and not self.serving.done():
            await asyncio.sleep(0.01)
        return bound[0], bound[1], bound[2]

    def _new_grpc(self) -> grpc.aio.Server:
        return grpc.aio.server(options=[
            ("grpc.max_receive_message_length", self.max_bytes), ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not take half of the requests
        ])  # fmt: skip

    async def end(self) -> None:
        """Take nothing new and finish what is in work, for `drain_s` seconds at most."""
        self._http.stop()
        waits = [server.stop(self.drain_s) for server in self._grpc_servers]
        waits.append(asyncio.wait_for(self.serving, self.drain_s))
        for error in await asyncio.gather(*waits, return_exceptions=True):
            if isinstance(error, Exception) and not isinstance(error, TimeoutError):
                logging.getLogger(__name__).warning("while stopping: %r", error)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port that is taken is an error of ours and not uvicorn's exit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends without delay; else the second part of an answer waits 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(f"--http-port={port}: cannot listen on {host}:{port} ({error.strerror})") from error
    listener.set_inheritable(True)
    return listener
