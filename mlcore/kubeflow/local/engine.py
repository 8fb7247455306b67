"""The local container engine, by its command `docker`: it is what everybody has who has an engine.

The Python package for Docker would be one more thing to install, and knows neither contexts nor the credentials of
registries as the command does.
"""

import io
import json
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlcore.kubeflow.local.plan import ContainerPlan, VolumePlan, mount_option
from mlcore.runtime.errors import MlcoreError, TransientError, UsageError

log = logging.getLogger(__name__)

_TIMEOUT_S = 120.0
_PULL_TIMEOUT_S = 3600.0


class EngineError(MlcoreError):
    """The engine refused something."""

    exit_code = UsageError.exit_code


@dataclass(frozen=True)
class ContainerState:
    """A container, as the engine sees it.

    Attributes:
        running: Whether it runs.
        exit_code: Of one that has ended.
        reason: The engine's own words, such as for a command that is not there.
    """

    running: bool
    exit_code: int
    reason: str


class Engine:
    """Calls docker; every call is bounded in time.

    Raises:
        UsageError: There is no engine, or it does not answer.
    """

    def __init__(self) -> None:
        command = shutil.which("docker")
        if command is None:
            raise UsageError("the command docker is not on the PATH: mlcore local-tfjob needs a container engine")
        self.command = command
        result = self.call("info", "--format={{json .}}", check=False)
        try:
            info = json.loads(result.stdout)
        except ValueError:
            info = {}
        if result.returncode != 0 or not info.get("ServerVersion"):
            errors = info.get("ServerErrors") or [result.stderr.strip() or "no answer"]
            raise UsageError(f"the container engine does not answer: {errors[0]}")
        self.cpus = int(info["NCPU"])

    def call(
        self, *arguments: str, stdin: bytes | None = None, timeout_s: float = _TIMEOUT_S, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run docker.

        Raises:
            EngineError: It failed, and `check`.
            TransientError: It took longer than `timeout_s` seconds.
        """
        try:
            # A session of its own: Ctrl-C on the terminal is for us alone.
            done = subprocess.run(
                [self.command, *arguments],
                input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True, timeout=timeout_s, check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise TransientError(f"docker {arguments[0]} has not ended within {timeout_s:.0f} s") from error
        result = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if check and result.returncode != 0:
            raise EngineError(f"docker {arguments[0]}: {_reason(result.stderr)}")
        return result

    def containers(self, labels: Mapping[str, str], *, running: bool) -> list[str]:
        """The names of containers with some labels, or only of those that run."""
        filters = [f"--filter=label={key}={value}" for key, value in labels.items()]
        listed = self.call("ps", *([] if running else ["--all"]), "--format={{.Names}}", *filters)
        return sorted(listed.stdout.split())

    def create(self, name: str, plan: ContainerPlan, options: Sequence[str]) -> None:
        """Make a container and do not start it."""
        self.call("create", f"--name={name}", "--pull=never", *options, *plan.options, plan.image, *plan.arguments)

    def start(self, name: str) -> str:
        """Start a container; what the engine says where it cannot, else empty."""
        result = self.call("start", name, check=False)
        return _reason(result.stderr) if result.returncode != 0 else ""

    def state(self, name: str) -> ContainerState | None:
        """The state of a container; None where there is no such container any more."""
        result = self.call("container", "inspect", "--format={{json .State}}", name, check=False)
        if result.returncode != 0:
            if "no such container" in result.stderr.lower():
                return None
            raise EngineError(f"docker inspect: {_reason(result.stderr)}")
        state: dict[str, Any] = json.loads(result.stdout)
        reason = "out of memory" if state.get("OOMKilled") else state.get("Error", "")
        return ContainerState(bool(state["Running"]), int(state["ExitCode"]), reason)

    def stop(self, name: str, grace_s: int) -> None:
        """SIGTERM, and SIGKILL `grace_s` seconds later; one that is gone is no error."""
        self.call("stop", "-t", str(grace_s), name, check=False, timeout_s=grace_s + _TIMEOUT_S)

    def remove(self, *names: str) -> None:
        """Remove containers, whether they run or are gone."""
        if names:
            self.call("rm", "--force", *names, check=False)

    def remove_volumes(self, *names: str) -> None:
        """Remove volumes, whether they are there or not."""
        if names:
            self.call("volume", "rm", "--force", *names, check=False)

    def provide_image(self, plan: ContainerPlan) -> str:
        """Pull an image where its pull policy or its absence asks for it.

        Returns:
            The user that the image names; empty for root.

        Raises:
            UsageError: It is neither here nor in a registry.
        """
        here = self.call("image", "inspect", "--format={{.Config.User}}", plan.image, check=False)
        if plan.pull == "Always" or (here.returncode != 0 and plan.pull != "Never"):
            log.info("pulling %s", plan.image)
            pulled = self.call("pull", "--quiet", plan.image, check=False, timeout_s=_PULL_TIMEOUT_S)
            if pulled.returncode == 0:
                here = self.call("image", "inspect", "--format={{.Config.User}}", plan.image)
            elif here.returncode == 0:
                log.warning("%s cannot be pulled (%s); taking the one that is here", plan.image,
                            _reason(pulled.stderr))  # fmt: skip
            else:
                raise UsageError(
                    f"{plan.image_path}={plan.image}: not on this machine, and not to be pulled: "
                    f"{_reason(pulled.stderr)}"
                )
        if here.returncode != 0:
            raise UsageError(f"{plan.image_path}={plan.image}: not on this machine, and imagePullPolicy is Never")
        return here.stdout.strip()

    def create_volumes(self, volumes: Sequence[VolumePlan], labels: Sequence[str], image: str) -> None:
        """Make volumes with their owner, mode and files.

        A container that is never started mounts them, and docker unpacks an archive into it: that needs nothing of
        the image, neither a shell nor root.
        """
        if not volumes:
            return
        mounts = []
        for number, volume in enumerate(volumes):
            self.call("volume", "create", *labels, volume.name)
            mounts.append(
                mount_option(type="volume", source=volume.name, target=f"/volumes/{number}", volume_nocopy=True)
            )
        made = self.call("create", "--network=none", "--pull=never", *labels, *mounts, "--entrypoint=/nothing", image)
        container = made.stdout.strip()
        try:
            self.call("cp", "-", f"{container}:/volumes", stdin=_archive(volumes))
        finally:
            self.remove(container)

    def has_volume(self, name: str) -> bool:
        """Whether there is such a volume."""
        return self.call("volume", "inspect", name, check=False).returncode == 0


def _archive(volumes: Sequence[VolumePlan]) -> bytes:
    """A tar of the volumes' contents, each in a folder with its number."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, mode: int, group: int | None, content: bytes | None = None) -> None:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.gid = mode, group or 0
            if content is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(content)
            archive.addfile(entry, None if content is None else io.BytesIO(content))

        for number, volume in enumerate(volumes):
            add(str(number), volume.mode, volume.group)
            for folder in volume.folders:
                add(f"{number}/{folder}", volume.mode, volume.group)
            for path, (content, mode) in volume.files.items():
                # fsGroup may read what is for its owner.
                add(f"{number}/{path}", mode if volume.group is None else mode | 0o440, volume.group, content)
    return buffer.getvalue()


def _reason(text: str) -> str:
    """What docker says is wrong, in one line."""
    lines = [line.removeprefix("docker: ").strip() for line in text.splitlines() if line.strip()]
    said = [line.partition("from daemon: ")[2] for line in lines if "from daemon: " in line]
    return (said or lines or ["no reason given"])[0]
