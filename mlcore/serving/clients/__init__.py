"""Clients of model servers, without TensorFlow: TensorFlow Serving's gRPC and REST, Open Inference's REST and gRPC.

    with connect("localhost:8500", "tfs-grpc", "mnist", deadline_s=10) as client:
        client.wait_until_ready(60)
        outputs = client.predict({"imgs": imgs})

`mlcore.serving.clients.client` has the interface that all four share.
"""

from typing import Literal

from mlcore.runtime.extras import require
from mlcore.serving.clients.access import Access
from mlcore.serving.clients.client import ModelClient, Server

Protocol = Literal["tfs-grpc", "v1", "v2", "v2-grpc"]
EXTRA = "client"


def connect(
    server: str,
    protocol: Protocol,
    model_name: str,
    *,
    deadline_s: float = 60.0,
    flag: str = "--server",
    access: Access | None = None,
) -> ModelClient:
    """A client of one model of a server. It connects when it is first used.

    Args:
        server: host:port, or an address such as https://host for a connection with TLS.
        protocol: How the server speaks.
        model_name: Name of the model there.
        deadline_s: Longest time for one call, retries included, in seconds.
        flag: How the server was given, for messages.
        access: Host, token and certificates, where an ingress asks for them.

    Raises:
        UsageError: The address is none, or the packages of the protocol are not installed.
    """
    address = Server.parse(server, protocol, flag, access or Access())
    if protocol in ("tfs-grpc", "v2-grpc"):
        require("grpc", EXTRA)
    else:
        require("httpx", EXTRA)
    if protocol == "tfs-grpc":
        from mlcore.serving.clients.tfs_grpc import TfsGrpcClient

        return TfsGrpcClient(address, model_name, deadline_s)
    if protocol == "v1":
        from mlcore.serving.clients.v1 import V1Client

        return V1Client(address, model_name, deadline_s)
    if protocol == "v2":
        from mlcore.serving.clients.v2 import V2Client

        return V2Client(address, model_name, deadline_s)
    from mlcore.serving.clients.v2_grpc import V2GrpcClient

    return V2GrpcClient(address, model_name, deadline_s)
