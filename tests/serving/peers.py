"""Servers that others' code makes, for our clients to talk to.

`TfServing` answers over tensorflow-serving-api's own stubs, with TensorFlow's own conversion of tensors; `Http` is a
plain web server whose answers a test writes down.
"""

import contextlib
import json
import os
import ssl
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc


class TfServing:
    """The gRPC of TensorFlow Serving around SavedModels: name -> base directory of versions.

    Attributes:
        port: Where it listens.
        requests: Each Predict request that came.
        authorizations: What each request of any kind gave as authorization.
        busy: How many of the next Predict requests are answered with the status busy_with.
        delay_s: How long each of them takes at least.
        most: Most of them at the same time.
    """

    def __init__(self, models: dict[str, Path], port: int = 0, tls: tuple[bytes, bytes] | None = None) -> None:
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
        import tensorflow as tf
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        self.directories = models
        self.models = {
            name: {int(entry.name): tf.saved_model.load(str(entry)) for entry in base.iterdir() if entry.name.isdigit()}
            for name, base in models.items()
        }
        self.requests: list = []
        self.authorizations: list = []
        self.busy = 0
        self.delay_s = 0.0
        self.now = self.most = 0
        self._lock = threading.Lock()
        self.busy_with = grpc.StatusCode.RESOURCE_EXHAUSTED
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        if tls is None:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        else:  # key and certificate
            self.port = self._server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([tls]))
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _model(self, spec, context):
        versions = self.models.get(spec.name)
        number = spec.version.value or (max(versions) if versions else 0)
        if not versions or number not in versions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        return number, versions[number]

    def Predict(self, request, context):
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        self.requests.append(request)
        self.authorizations.append(dict(context.invocation_metadata()).get("authorization"))
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            time.sleep(self.delay_s)
            return self._answer(request, context, predict_pb2, tf)
        finally:
            with self._lock:
                self.now -= 1

    def _answer(self, request, context, predict_pb2, tf):
        if self.busy:
            self.busy -= 1
            context.abort(self.busy_with, "try again")
        number, model = self._model(request.model_spec, context)
        name = request.model_spec.signature_name or "serving_default"
        if name not in model.signatures:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'Serving signature name: "{name}" not found')
        signature = model.signatures[name]
        wanted = signature.structured_input_signature[1]
        if set(request.inputs) != set(wanted):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expected the inputs {sorted(wanted)}")
        arguments = {}
        for key, proto in request.inputs.items():
            array = tf.make_ndarray(proto)
            spec = wanted[key]
            if proto.dtype != spec.dtype.as_datatype_enum or not spec.shape.is_compatible_with(array.shape):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{key}: expected {spec}")
            arguments[key] = tf.constant(array, spec.dtype)
        try:
            outputs = signature(**arguments)
        except tf.errors.OpError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message[:200])
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.signature_name = request.model_spec.name, name
        response.model_spec.version.value = number
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response

    def GetModelMetadata(self, request, context):
        from tensorflow.core.protobuf import saved_model_pb2
        from tensorflow_serving.apis import get_model_metadata_pb2

        self.authorizations.append(dict(context.invocation_metadata()).get("authorization"))
        number, _ = self._model(request.model_spec, context)
        directory = self.directories[request.model_spec.name] / str(number)
        saved = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in saved.meta_graphs[0].signature_def.items():
            signatures.signature_def[name].CopyFrom(definition)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = number
        response.metadata["signature_def"].Pack(signatures)
        return response

    def GetModelStatus(self, request, context):
        from tensorflow_serving.apis import get_model_status_pb2

        self.authorizations.append(dict(context.invocation_metadata()).get("authorization"))
        self._model(request.model_spec, context)
        response = get_model_status_pb2.GetModelStatusResponse()
        for number in sorted(self.models[request.model_spec.name], reverse=True):
            response.model_version_status.add(version=number, state=30)
        return response

    def __getattr__(self, name):  # the services' other methods
        if name in ("Classify", "Regress", "MultiInference", "HandleReloadConfigRequest"):
            return lambda request, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, name)
        raise AttributeError(name)


class Http:
    """A web server that gives each request the next of the answers for its path: (status, body, headers).

    The last answer stays. A path with the text `silent` in it gets none. Attributes: `requests`, a list of (method,
    path, body, headers).
    """

    def __init__(self, answers: dict[str, list], silent: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._end = threading.Event()
        self.answers = {path: list(each) for path, each in answers.items()}
        self.requests: list = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                peer.requests.append((self.command, self.path, body, dict(self.headers)))
                if silent is not None and silent in self.path:
                    peer._end.wait()
                left = peer.answers.get(self.path, [(404, {"error": f"no {self.path}"})])
                status, content, *headers = left.pop(0) if len(left) > 1 else left[0]
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, *_) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
