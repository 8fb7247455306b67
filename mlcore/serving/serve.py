"""The step `serve`: a model server for one model, whose versions it takes from a directory as they appear there."""

import asyncio
import contextlib
import gc
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mlcore.runtime.errors import UsageError
from mlcore.runtime.extras import require
from mlcore.runtime.parameters import Range, step
from mlcore.runtime.signals import StopFlag, stop_flag
from mlcore.serving.server.policy import parse_policy, parse_traffic

if TYPE_CHECKING:
    from mlcore.serving.server.kserve_server import ModelServer
    from mlcore.serving.server.service import Service

log = logging.getLogger(__name__)

Port = Annotated[int, Range(min=0, max=65535)]
_LOOK_S = 0.05  # between two looks at the flag that a signal sets


@dataclass(frozen=True)
class ServeResult:
    """What was served until the end.

    Attributes:
        answered: Requests that were answered.
        refused: Requests that were refused: bad input, a full queue, time-outs.
        versions: The versions that were served at the end, the highest first.
    """

    answered: int
    refused: int
    versions: tuple[int, ...]


@step
def serve(
    *,
    model_name: str,
    models_dir: Path,
    http_port: Port = 8080,
    grpc_port: Port = 8081,
    tfs_port: Port = 8500,
    host: str = "0.0.0.0",
    version_policy: str = "latest:2",
    traffic: tuple[str, ...] = (),
    poll_interval_s: Annotated[float, Range(min=0.1)] = 2.0,
    max_batch_size: Annotated[int, Range(min=1)] = 32,
    max_batch_delay_ms: Annotated[float, Range(min=0)] = 5.0,
    max_queue: Annotated[int, Range(min=1)] = 1024,
    max_in_flight_mb: Annotated[float, Range(min=0.001)] = 1024.0,
    batch_workers: Annotated[int, Range(min=1)] = 1,
    threads: Annotated[int, Range(min=0)] = 0,
    max_request_mb: Annotated[float, Range(min=0.001, max=2000)] = 64.0,
    request_timeout_s: Annotated[float, Range(min=0.001)] = 30.0,
    drain_timeout_s: Annotated[float, Range(min=0, max=9)] = 8.0,
    request_log: Path | None = None,
    request_log_payload: bool = False,
    request_log_file_mb: Annotated[float, Range(min=0.001)] = 64.0,
    request_log_files: Annotated[int, Range(min=1)] = 8,
    run_seconds: Annotated[float, Range(min=0)] = 0.0,
) -> ServeResult:
    """Serve a model over the protocols of TensorFlow Serving and KServe.

    On --http-port: V1 and V2 (Open Inference) REST and /metrics for Prometheus; on --grpc-port V2 gRPC; on --tfs-port
    TensorFlow Serving's gRPC. A version that appears in the directory is loaded and warmed up, then takes the requests;
    the one before finishes what it has. A version that cannot be loaded is refused and never takes a good one down.
    SIGTERM ends it after everything that was accepted is answered.

    Args:
        model_name: Name of the model for clients.
        models_dir: Directory of its versions, as mlcore export and mlcore mnist-train --export-dir write it. It may be
            empty, or appear later: until there is a version the server is live, but not ready.
        http_port: Port of REST and metrics; 0 here and below: any free one, which is logged.
        grpc_port: Port of V2 gRPC.
        tfs_port: Port of TensorFlow Serving's gRPC.
        host: Address to listen on.
        version_policy: Which versions are served: latest:N, all, or specific:N,N. Each can be asked for by its number;
            a request without one goes to the highest.
        traffic: VERSION:WEIGHT: split requests that ask for no version, such as 2:90 and 3:10. The same request id
            always goes to the same version.
        poll_interval_s: Seconds between two looks at the directory.
        max_batch_size: Most examples of one call of the model, which needs memory for them; 1: requests are never put
            together.
        max_batch_delay_ms: How long the first request of a batch waits at most for as many others as came together of
            late. The requests of a lone client never wait.
        max_queue: Most examples that wait; requests beyond are refused with 429 or RESOURCE_EXHAUSTED.
        max_in_flight_mb: Most megabytes of inputs that wait or run, and of bodies over HTTP that still come; requests
            beyond are refused in the same way.
        batch_workers: Batches that run at once.
        threads: Threads of one operation; 0: as many as there are cores. A model whose call takes less than a
            millisecond answers a tenth more requests with 1.
        max_request_mb: Most megabytes of a request; a larger one is refused with 413 or RESOURCE_EXHAUSTED.
        request_timeout_s: Most time of a request; then 504 or DEADLINE_EXCEEDED.
        drain_timeout_s: At a stop: most time to answer what was accepted.
        request_log: Folder for a log of requests and answers, as JSON lines, for monitoring and training later.
        request_log_payload: Keep inputs whole in the request log, not only their digests.
        request_log_file_mb: The request log begins a new file after so many megabytes.
        request_log_files: Most files of the request log; the oldest are removed.
        run_seconds: End by itself after so long; 0: serve until it is stopped.

    Raises:
        UsageError: A parameter is wrong, a port is taken, or the packages are not installed.
    """
    ports = [port for port in (http_port, grpc_port, tfs_port) if port]
    if len(set(ports)) < len(ports):
        raise UsageError(
            f"--http-port={http_port}, --grpc-port={grpc_port}, --tfs-port={tfs_port}: expected three different ports"
        )
    policy, split = parse_policy(version_policy), parse_traffic(traffic)
    if not model_name or not all(letter.isalnum() or letter in "._-" for letter in model_name):
        raise UsageError(f"--model-name={model_name}: expected letters, digits, '.', '_' and '-'")
    if models_dir.exists() and not models_dir.is_dir():
        raise UsageError(f"--models-dir={models_dir}: not a directory; expected that of the versions")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for module in ("tensorflow_serving", "prometheus_client", "uvicorn", "uvloop"):  # kserve reads argv, see there
        require(module, extra="serving")
    import uvloop

    from mlcore.serving.server import savedmodel
    from mlcore.serving.server.batcher import Batcher
    from mlcore.serving.server.kserve_server import ModelServer
    from mlcore.serving.server.metrics import Metrics
    from mlcore.serving.server.repository import Repository
    from mlcore.serving.server.request_log import RequestLog
    from mlcore.serving.server.service import Service

    metrics = Metrics(model_name)
    kept = None
    if request_log is not None:
        try:
            kept = RequestLog(
                request_log, max_file_bytes=int(request_log_file_mb * 1e6), max_files=request_log_files,
                payload=request_log_payload, count=metrics.log_entry,
            )  # fmt: skip
        except OSError as error:
            raise UsageError(f"--request-log={request_log}: cannot be made ({error.strerror})") from error

    async def main(stop: StopFlag) -> ServeResult:
        batcher = Batcher(
            max_batch_size=max_batch_size, max_delay_s=max_batch_delay_ms / 1000, max_queue=max_queue,
            max_bytes=max_in_flight_mb * 1e6,
            workers=batch_workers, timeout_s=request_timeout_s,
            is_bad_input=savedmodel.is_bad_input, message_of=savedmodel.message_of,
        )  # fmt: skip
        repository = Repository(
            model_name, models_dir, load=lambda directory: savedmodel.load(directory, threads), policy=policy,
            traffic=split, metrics=metrics,
        )  # fmt: skip
        service = Service(repository, batcher, metrics, kept)
        server = ModelServer(
            service, model_name, host=host, ports=(http_port, grpc_port, tfs_port),
            max_bytes=int(max_request_mb * 1e6), drain_s=drain_timeout_s,
        )  # fmt: skip
        result = await _run(server, service, stop, poll_interval_s, run_seconds)
        if stop.is_set() and not (batcher.idle and repository.threads == 0):
            # Python would wait for a thread that is inside the model, however long that takes.
            log.warning("leaving while the model still works on what is no longer waited for")
            if kept is not None:
                kept.close()
            os._exit(stop.error().exit_code)
        return result

    with stop_flag() as stop, _rare_collections():
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(main(stop))
        finally:
            if kept is not None:
                kept.close()
            metrics.close()
        if stop.is_set():
            raise stop.error()
    return result


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Keep Python's collector away from what is there already.

    Each list of a request's JSON counts for it, and every so often it goes through the 250,000 objects of TensorFlow:
    that made a V1 request take 1.4 ms in place of 0.3. Versions are loaded after this, so theirs are collected.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _run(
    server: "ModelServer", service: "Service", stop: StopFlag, poll_interval_s: float, run_seconds: float
) -> ServeResult:
    """Serve until a signal, or for so many seconds."""
    ports = await server.begin()
    log.info("listening: HTTP %d, V2 gRPC %d, TensorFlow Serving gRPC %d", *ports)
    watching = asyncio.create_task(service.repository.watch(poll_interval_s))
    end = time.monotonic() + run_seconds if run_seconds else float("inf")
    while not stop.is_set() and time.monotonic() < end:
        await asyncio.sleep(_LOOK_S)
        for task, what in ((watching, "the watch of the directory"), (server.serving, "the REST server")):
            if task.done():
                task.result()
                raise RuntimeError(f"{what} ended")
    service.stopping = True
    log.info("stopping: %d requests are in work", service.in_flight)
    watching.cancel()
    await server.end()
    service.batcher.close()
    result = ServeResult(service.answered, service.refused, tuple(service.repository.versions))
    log.info("stopped: %d requests answered, %d refused", result.answered, result.refused)
    return result
