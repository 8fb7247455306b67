"""TensorFlow Serving's gRPC: PredictionService (Predict, GetModelMetadata) and ModelService (GetModelStatus)."""

from collections.abc import Mapping
from typing import Any

from mlcore.serving.clients.client import Array, Metadata, ModelClient, Server, ServerFailedError
from mlcore.serving.clients.grpc_channel import Channel
from mlcore.serving.clients.tensor_proto import STATES, fill_tensor, messages, read_signatures, read_tensor

PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_SIGNATURES = "signature_def"


class TfsGrpcClient(ModelClient):
    """A client of TensorFlow Serving, or of a server that speaks as it does."""

    protocol = "tfs-grpc"

    def __init__(self, server: Server, model_name: str, deadline_s: float = 60.0) -> None:
        super().__init__(server, model_name, deadline_s)
        self._channel = Channel(server)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, request: str, answer: str, fill: Any, timeout_s: float) -> Any:
        message = messages()[request]()
        fill(message)
        return self._channel.call(method, message, messages()[answer], timeout_s, what=str(self))

    def _name(self, spec: Any, version: int | None) -> None:
        spec.name = self.model_name
        if version is not None:
            spec.version.value = version

    def _predict(
        self, inputs: Mapping[str, Array], signature: str | None, version: int | None, timeout_s: float
    ) -> dict[str, Array]:
        def fill(message: Any) -> None:
            self._name(message.model_spec, version)
            message.model_spec.signature_name = signature or ""
            for name, array in inputs.items():
                fill_tensor(message.inputs[name], array)

        answer = self._call(PREDICT, "PredictRequest", "PredictResponse", fill, timeout_s)
        try:
            return {name: read_tensor(proto) for name, proto in sorted(answer.outputs.items())}
        except ValueError as error:
            raise ServerFailedError(f"{self}: an output cannot be read: {error}") from error

    def _metadata(self, version: int | None, timeout_s: float) -> Metadata:
        def fill(message: Any) -> None:
            self._name(message.model_spec, version)
            message.metadata_field.append(_SIGNATURES)

        answer = self._call(METADATA, "GetModelMetadataRequest", "GetModelMetadataResponse", fill, timeout_s)
        if _SIGNATURES not in answer.metadata:
            raise ServerFailedError(f"{self}: the metadata has no {_SIGNATURES}")
        number = answer.model_spec.version.value or None
        return Metadata(read_signatures(answer.metadata[_SIGNATURES].value), True, number)

    def _status(self, timeout_s: float) -> Any:
        fill = lambda message: self._name(message.model_spec, None)  # noqa: E731 (used once, in the next line)
        return self._call(STATUS, "GetModelStatusRequest", "GetModelStatusResponse", fill, timeout_s)

    def _versions(self, timeout_s: float) -> dict[int, str]:
        entries = self._status(timeout_s).model_version_status
        return {entry.version: STATES.get(entry.state, str(entry.state)) for entry in entries}

    def _why_not_ready(self, timeout_s: float) -> str:
        entries = self._status(timeout_s).model_version_status
        if any(STATES.get(entry.state) == "AVAILABLE" for entry in entries):
            return ""
        told = [
            f"version {entry.version} is {STATES.get(entry.state, entry.state)} {entry.status.error_message}".strip()
            for entry in entries
        ]
        return f"{self}: {'; '.join(told) or 'no version of it'}"
