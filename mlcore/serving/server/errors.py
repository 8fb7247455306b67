"""What a request can be refused with, in the words of both HTTP and gRPC."""

from enum import Enum


class Code(Enum):
    """A status: its name in gRPC, its number in HTTP."""

    OK = ("OK", 200)
    INVALID_ARGUMENT = ("INVALID_ARGUMENT", 400)
    NOT_FOUND = ("NOT_FOUND", 404)
    TOO_LARGE = ("RESOURCE_EXHAUSTED", 413)
    UNKNOWN_ENCODING = ("UNIMPLEMENTED", 415)
    RESOURCE_EXHAUSTED = ("RESOURCE_EXHAUSTED", 429)
    CANCELLED = ("CANCELLED", 499)
    INTERNAL = ("INTERNAL", 500)
    UNIMPLEMENTED = ("UNIMPLEMENTED", 501)
    UNAVAILABLE = ("UNAVAILABLE", 503)
    DEADLINE_EXCEEDED = ("DEADLINE_EXCEEDED", 504)

    @property
    def grpc(self) -> str:
        """Name of the gRPC status."""
        return self.value[0]

    @property
    def http(self) -> int:
        """Number of the HTTP status."""
        return self.value[1]


class RequestError(Exception):
    """A request that is not answered; the message is for its sender and names the field that is wrong."""

    def __init__(self, message: str, code: Code = Code.INVALID_ARGUMENT) -> None:
        super().__init__(message)
        self.code = code


def too_many(held: float, most: float) -> RequestError:
    """What a request is refused with while others fill the memory that requests may take, in bytes."""
    return RequestError(
        f"{held / 1e6:.3g} MB of requests are in work, at most {most / 1e6:.3g} are held; try again later",
        Code.RESOURCE_EXHAUSTED,
    )
