"""The V1 REST interface: TensorFlow Serving's, which is also KServe's V1.

POST /v1/models/<name>[/versions/<n>]:predict
GET  /v1/models/<name>[/versions/<n>]             status of the versions; KServe's `name` and `ready` beside it
GET  /v1/models/<name>[/versions/<n>]/metadata    signatures
"""

from starlette.responses import Response
from starlette.routing import Route

from mlcore.serving.server import json_tensors
from mlcore.serving.server.errors import Code, RequestError
from mlcore.serving.server.http import (
    JSON,
    Answer,
    HttpRequest,
    Post,
    Predict,
    error_response,
    in_thread,
    request_id,
    version_number,
)
from mlcore.serving.server.service import Service
from mlcore.serving.server.states import version_states

PROTOCOL = "v1"
_JSON = JSON.encode()


class V1:
    """The routes of V1."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def predictions(self) -> dict[str, Predict]:
        """Pattern of the path of predictions -> what answers them."""
        return {r"/v1/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?:predict": self.predict}

    def routes(self) -> list[Route]:
        """The routes of the rest, for the application."""
        found = []
        for path in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
            found += [
                Route(path + "/metadata", self.metadata, methods=["GET"]),
                Route(path, self.status, methods=["GET"]),
            ]
        return found

    async def predict(self, http: Post) -> Answer | Response:
        """Answer a prediction."""
        with_id = request_id(http)
        try:
            with self.service.request(PROTOCOL, with_id) as request:
                with_id = request.id
                version = request.choose(http.path_params["name"], version_number(http))
                body = http.body
                content = await in_thread(len(body), json_tensors.loads, body)
                name, form = json_tensors.read_request(content)
                signature = request.signature(name)
                inputs = await in_thread(len(body), json_tensors.decode, signature, content, form)
                outputs = await request.run(signature, inputs)
                size = sum(value.nbytes for value in outputs.values())
                answer = await in_thread(size, json_tensors.encode, outputs, form)
                return Answer(answer, _JSON, request.id, version.number)
        except Exception as error:
            return error_response(error, with_id)

    async def status(self, http: HttpRequest) -> Response:
        """The states of the versions."""
        try:
            states = version_states(self.service.repository, http.path_params["name"], version_number(http))
        except RequestError as error:
            return error_response(error)
        ready = self.service.ready and any(state.available for state in states)
        body = {
            "model_version_status": [
                {
                    "version": str(state.number),
                    "state": state.state,
                    "status": {"error_code": state.code, "error_message": state.message},
                }
                for state in states
            ],
            "name": self.service.repository.name,
            "ready": ready,
        }
        # KServe asks here whether the model is ready: by the status. TensorFlow Serving answers 200 for what it knows.
        status = Code.UNAVAILABLE if version_number(http) is None and not ready else Code.OK
        return Response(json_tensors.dumps(body), status.http, media_type=JSON)

    async def metadata(self, http: HttpRequest) -> Response:
        """The signatures of a version."""
        with_id = request_id(http)
        from mlcore.serving.server.grpc_tfs import signatures_as_json

        try:
            repository = self.service.repository
            version = repository.acquire(http.path_params["name"], version_number(http), with_id or "")
            try:
                body = {
                    "model_spec": {
                        "name": repository.name, "signature_name": "", "version": str(version.number),
                    },
                    "metadata": {"signature_def": signatures_as_json(version.model.signature_defs)},
                }  # fmt: skip
            finally:
                repository.release(version)
        except RequestError as error:
            return error_response(error, with_id)
        return Response(json_tensors.dumps(body), media_type=JSON)
