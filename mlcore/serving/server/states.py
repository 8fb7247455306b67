"""The states of versions, in the words of TensorFlow Serving's ModelService."""

from dataclasses import dataclass

from mlcore.serving.server.errors import Code, RequestError
from mlcore.serving.server.repository import Repository


@dataclass(frozen=True)
class VersionState:
    """How a version is.

    Attributes:
        number: Its number.
        state: LOADING, AVAILABLE or END, as in get_model_status.proto.
        code: Name of an error code of TensorFlow; OK where there is none.
        message: What is wrong with it.
    """

    number: int
    state: str
    code: str = "OK"
    message: str = ""

    @property
    def available(self) -> bool:
        """Whether it answers."""
        return self.state == "AVAILABLE"


def version_states(repository: Repository, model: str, number: int | None) -> list[VersionState]:
    """The versions that the server knows, or the one asked for, the highest first.

    Raises:
        RequestError: The model or the version is not known.
    """
    if model != repository.name:
        raise RequestError(f"Could not find any versions of model {model}", Code.NOT_FOUND)
    states = {
        broken: VersionState(broken, "END", "UNKNOWN", failure.message)
        for broken, failure in repository.failures.items()
    }
    if repository.loading is not None:
        states[repository.loading] = VersionState(repository.loading, "LOADING")
    states |= {version: VersionState(version, "AVAILABLE") for version in repository.versions}
    if number is not None:
        if number not in states:
            raise RequestError(f"Could not find version {number} of model {model}", Code.NOT_FOUND)
        return [states[number]]
    return [states[version] for version in sorted(states, reverse=True)]
