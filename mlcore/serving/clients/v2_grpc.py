"""The Open Inference Protocol (V2) over gRPC: the service inference.GRPCInferenceService, arrays as raw data."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from mlcore.serving.clients.client import (
    SERVING_DEFAULT,
    Array,
    Metadata,
    ModelClient,
    Server,
    ServerFailedError,
    Signature,
    TensorSpec,
    bytes_array,
)
from mlcore.serving.clients.grpc_channel import Channel
from mlcore.serving.clients.open_inference import DATATYPES, datatype_of, from_raw, to_raw
from mlcore.serving.clients.wire import build

_SERVICE = "/inference.GRPCInferenceService/"
# open_inference_grpc.proto of the protocol.
_TABLE = """
InferParameter
  1 oneof bool bool_param
  2 oneof int64 int64_param
  3 oneof string string_param
InferTensorContents
  1 repeated bool bool_contents
  2 repeated int32 int_contents
  3 repeated int64 int64_contents
  4 repeated uint32 uint_contents
  5 repeated uint64 uint64_contents
  6 repeated float fp32_contents
  7 repeated double fp64_contents
  8 repeated bytes bytes_contents
ModelReadyRequest
  1 string name
  2 string version
ModelReadyResponse
  1 bool ready
ModelMetadataRequest
  1 string name
  2 string version
TensorMetadata
  1 string name
  2 string datatype
  3 repeated int64 shape
ModelMetadataResponse
  1 string name
  2 repeated string versions
  3 string platform
  4 repeated TensorMetadata inputs
  5 repeated TensorMetadata outputs
InferTensor
  1 string name
  2 string datatype
  3 repeated int64 shape
  4 map<string, InferParameter> parameters
  5 InferTensorContents contents
ModelInferRequest
  1 string model_name
  2 string model_version
  3 string id
  4 map<string, InferParameter> parameters
  5 repeated InferTensor inputs
  7 repeated bytes raw_input_contents
ModelInferResponse
  1 string model_name
  2 string model_version
  3 string id
  4 map<string, InferParameter> parameters
  5 repeated InferTensor outputs
  6 repeated bytes raw_output_contents
"""
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


@cache
def messages() -> dict[str, Any]:
    """Name -> class of each message."""
    return build("inference", _TABLE)


class V2GrpcClient(ModelClient):
    """A client of a KServe, Triton or other server that speaks Open Inference's gRPC."""

    protocol = "v2-grpc"

    def __init__(self, server: Server, model_name: str, deadline_s: float = 60.0) -> None:
        super().__init__(server, model_name, deadline_s)
        self._channel = Channel(server)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, request: Any, answer: str, timeout_s: float) -> Any:
        return self._channel.call(_SERVICE + method, request, messages()[answer], timeout_s, what=str(self))

    def _predict(
        self, inputs: Mapping[str, Array], signature: str | None, version: int | None, timeout_s: float
    ) -> dict[str, Array]:
        request = messages()["ModelInferRequest"](model_name=self.model_name, model_version=_text(version))
        if signature is not None:
            request.parameters["signature_name"].string_param = signature
        for name, array in inputs.items():
            request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            request.raw_input_contents.append(to_raw(array))
        answer = self._call("ModelInfer", request, "ModelInferResponse", timeout_s)
        outputs: dict[str, Array] = {}
        try:
            for index, entry in enumerate(answer.outputs):
                shape = tuple(entry.shape)
                if answer.raw_output_contents:
                    outputs[entry.name] = from_raw(answer.raw_output_contents[index], entry.datatype, shape)
                else:
                    outputs[entry.name] = _contents(entry).reshape(shape)
        except (KeyError, IndexError, ValueError) as error:
            raise ServerFailedError(f"{self}: an output cannot be read: {error!r}") from error
        return outputs

    def _model_metadata(self, version: int | None, timeout_s: float) -> Any:
        request = messages()["ModelMetadataRequest"](name=self.model_name, version=_text(version))
        return self._call("ModelMetadata", request, "ModelMetadataResponse", timeout_s)

    def _metadata(self, version: int | None, timeout_s: float) -> Metadata:
        answer = self._model_metadata(version, timeout_s)

        def specs(entries: Any) -> dict[str, TensorSpec]:
            return {
                entry.name: TensorSpec(entry.name, DATATYPES.get(entry.datatype, np.dtype(np.void)), tuple(entry.shape))
                for entry in entries
            }

        numbers = [int(text) for text in answer.versions if text.isdecimal()]
        signature = Signature(specs(answer.inputs), specs(answer.outputs))
        return Metadata({SERVING_DEFAULT: signature}, False, max(numbers, default=None))

    def _versions(self, timeout_s: float) -> dict[int, str]:
        numbers = [int(text) for text in self._model_metadata(None, timeout_s).versions if text.isdecimal()]
        return dict.fromkeys(sorted(numbers), "AVAILABLE")

    def _why_not_ready(self, timeout_s: float) -> str:
        request = messages()["ModelReadyRequest"](name=self.model_name)
        answer = self._call("ModelReady", request, "ModelReadyResponse", timeout_s)
        return "" if answer.ready else f"{self}: ready is false"


def _text(version: int | None) -> str:
    return "" if version is None else str(version)


def _contents(entry: Any) -> Array:
    """The values of an output that is not raw."""
    values = getattr(entry.contents, _CONTENTS[entry.datatype])
    return bytes_array(values) if entry.datatype == "BYTES" else np.asarray(values, DATATYPES[entry.datatype])
