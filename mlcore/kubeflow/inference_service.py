"""KServe's InferenceService: its manifest for an exported model, and what its status says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlcore.kubeflow.cluster import Object, Resource
from mlcore.runtime.errors import UsageError

RESOURCE = Resource("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService", "KServe (kserve/kserve)")
MODELS = "/mnt/models"  # where KServe puts what storageUri names
HTTP_PORT = 8080

Protocol = Literal["v1", "v2", "grpc-v1", "grpc-v2"]
_OF_TENSORFLOW_SERVING = ("v1", "grpc-v1")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?")
_QUANTITY = re.compile(r"\d+(\.\d+)?([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
# Of modelStatus, and of the conditions: no more waiting helps.
_BROKEN = ("BlockedByFailedLoad", "InvalidSpec")
_BROKEN_REASONS = ("RevisionFailed", "ProgressDeadlineExceeded")


@dataclass(frozen=True)
class Model:
    """What is to be served, and how.

    Attributes:
        name: Name of the model and of the service.
        storage_uri: Directory with numbered versions.
        version: The only version to serve; None: the highest.
        runtime: Name of a ServingRuntime; None: KServe's choice for TensorFlow.
        protocol: Protocol of the requests; None: that of the runtime.
        image: Image to serve with in place of a runtime.
        arguments: More arguments of the container.
        service_account: Account that may read the storage.
        min_replicas: Least pods.
        max_replicas: Most pods.
        cpu: CPUs of a pod.
        memory: Memory of a pod.
        gpus: GPUs of a pod.
    """

    name: str
    storage_uri: str
    version: int | None = None
    runtime: str | None = None
    protocol: Protocol | None = None
    image: str | None = None
    arguments: Sequence[str] = ()
    service_account: str | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    cpu: str | None = None
    memory: str | None = None
    gpus: int = 0

    def check(self) -> None:
        """Find what the cluster would refuse, or would accept and never serve.

        Raises:
            UsageError: A value is wrong, or two do not go together.
        """
        check_name(self.name)
        if not re.match(r"[a-z0-9]+://.", self.storage_uri):
            raise UsageError(
                f"--storage-uri={self.storage_uri}: expected such as pvc://claim/exports/pets or s3://bucket/pets"
            )
        if re.search(r"/\d+/?$", self.storage_uri):
            raise UsageError(
                f"--storage-uri={self.storage_uri}: names one version; expected the directory that holds the numbered "
                "versions, and the number as --version"
            )
        if self.image and (self.runtime or self.protocol):
            raise UsageError("--image takes the place of a runtime: leave out --runtime and --protocol")
        if not self.runtime and self.protocol not in (None, *_OF_TENSORFLOW_SERVING):
            raise UsageError(
                f"--protocol={self.protocol}: KServe's TensorFlow runtime speaks "
                f"{' and '.join(_OF_TENSORFLOW_SERVING)}; "
                "name another --runtime, or an --image"
            )
        if self.min_replicas is not None and self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise UsageError(f"--min-replicas={self.min_replicas}: more than --max-replicas={self.max_replicas}")
        for flag, text in (("cpu", self.cpu), ("memory", self.memory)):
            if text is not None and not _QUANTITY.fullmatch(text):
                raise UsageError(f"--{flag}={text}: expected a quantity such as 500m, 2 or 4Gi")

    def predictor(self) -> Object:
        """The predictor of the InferenceService."""
        uri = self.storage_uri.rstrip("/")
        predictor: Object = _present(
            serviceAccountName=self.service_account, minReplicas=self.min_replicas, maxReplicas=self.max_replicas
        )
        if self.version is not None:  # a server then sees the directory of this version alone
            predictor["storageUris"] = [{"uri": f"{uri}/{self.version}", "mountPath": f"{MODELS}/{self.version}"}]
        if self.image is None:
            predictor["model"] = {
                "modelFormat": {"name": "tensorflow"},
                **({} if self.version is not None else {"storageUri": uri}),
                **_present(
                    runtime=self.runtime,
                    protocolVersion=self.protocol,
                    args=list(self.arguments) or None,
                    resources=self._resources(),
                ),
            }
        else:
            predictor["containers"] = [self._container(uri)]
            predictor["volumes"] = [{"name": "tmp", "emptyDir": {}}]
        return predictor

    def _container(self, uri: str) -> Object:
        return {
            "name": "kserve-container",
            "image": self.image,
            "args": [f"--model-name={self.name}", f"--models-dir={MODELS}", *self.arguments],
            "ports": [{"containerPort": HTTP_PORT, "protocol": "TCP"}],
            # KServe fetches what this variable names, and mounts it.
            **({} if self.version is not None else {"env": [{"name": "STORAGE_URI", "value": uri}]}),
            "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": HTTP_PORT}},
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **_present(resources=self._resources()),
        }

    def _resources(self) -> Object | None:
        wanted = _present(cpu=self.cpu, memory=self.memory)
        if self.gpus:
            wanted["nvidia.com/gpu"] = str(self.gpus)
        return {"requests": wanted, "limits": dict(wanted)} if wanted else None


def check_name(name: str) -> None:
    """Whether a name can be an InferenceService's, which becomes a part of host names.

    Raises:
        UsageError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"--model-name={name}: expected at most 53 lower-case letters, digits and -, a letter first")


def _present(**values: Any) -> Object:
    return {name: value for name, value in values.items() if value is not None}


def manifest(name: str, namespace: str, predictor: Object) -> Object:
    """The InferenceService.

    It gets no annotations or labels that change: they would be those of its pods, and any change a new revision.
    """
    return {
        "apiVersion": RESOURCE.api_version,
        "kind": RESOURCE.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"predictor": predictor},
    }


def template(service: Object | None) -> Object | None:
    """What of a service makes its pods: everything but the share of traffic."""
    if service is None:
        return None
    predictor = dict(service["spec"].get("predictor") or {})
    predictor.pop("canaryTrafficPercent", None)
    return {**service["spec"], "predictor": predictor}


@dataclass(frozen=True)
class Progress:
    """How far the rollout of a service is.

    Attributes:
        state: waiting, ready or broken.
        text: Why, in one line.
        exit_code: Exit code of the container that cannot start, where it is known.
    """

    state: Literal["waiting", "ready", "broken"]
    text: str
    exit_code: int | None = None


class Rollout:
    """Tells from the status of a service whether what was applied is served.

    Args:
        before: The service as it was before.
        applied: The service as the server returned it.
        percent: Traffic that the newest revision is to get.
        served: A revision that is good again, where a change is taken back.
    """

    def __init__(self, before: Object | None, applied: Object, percent: int, served: str = "") -> None:
        self._before = before
        self._served = served
        self._percent = percent
        self._generation: int = applied["metadata"]["generation"]
        self.is_new_template = template(before) != template(applied)
        self.changed = before is None or before["metadata"]["generation"] != self._generation

    @property
    def _status_before(self) -> Object:
        return (self._before or {}).get("status") or {}

    def progress(self, service: Object, waited_s: float, settle_s: float) -> Progress:
        """Where the rollout is.

        Args:
            service: The service now.
            waited_s: Since it was applied.
            settle_s: After this time a status that has not moved is taken as it is.
        """
        status = service.get("status") or {}
        is_current = self._is_current(status, waited_s > settle_s)
        broken = _broken(status)
        # What is refused as a whole gets no revision: the failure itself is the news then.
        if broken is not None and (is_current or status.get("modelStatus") != self._status_before.get("modelStatus")):
            return broken
        if not is_current:
            return Progress("waiting", "the controller has not taken it up yet")
        ready = condition(status, "Ready")
        if ready.get("status") != "True":
            return Progress("waiting", describe(status))
        created, component = revision(status), _component(status)
        if created and component.get("latestReadyRevision") != created:
            return Progress("waiting", f"revision {created} is not ready yet")
        if created and not self._has_its_traffic(status, created):
            split = traffic(status)
            if self.is_new_template or waited_s <= settle_s:
                return Progress("waiting", f"the traffic is not shifted yet: {split}")
            return Progress("ready", f"the traffic is {split}")
        if not status.get("url"):
            return Progress("waiting", "it has no address yet")
        return Progress("ready", f"the traffic is {traffic(status)}" if created else "its pods are ready")

    def _is_current(self, status: Object, settled: bool) -> bool:
        """Whether the status is about what was applied.

        `observedGeneration` alone does not tell: KServe copies it from an object of its own (kserve#6081).
        """
        if not status:
            return False
        if not self.is_new_template:
            return True
        before = self._status_before
        if created := revision(status):
            return created != revision(before) or created == self._served
        if not before:
            return True
        observed = status.get("observedGeneration")
        moved = observed != before.get("observedGeneration") or (observed or 0) >= self._generation
        changed = condition(status, "Ready") != condition(before, "Ready")
        return moved or changed or settled

    def _has_its_traffic(self, status: Object, created: str) -> bool:
        targets = _component(status).get("traffic") or []
        percent = sum(target.get("percent") or 0 for target in targets if target.get("revisionName") == created)
        return percent == self._percent


def _component(status: Object) -> Object:
    return dict((status.get("components") or {}).get("predictor") or {})


def revision(status: Object) -> str:
    """The newest revision; empty where the deployment has none."""
    return str(_component(status).get("latestCreatedRevision") or "")


def has_revisions(service: Object) -> bool:
    """Whether traffic can be split: only Knative has revisions."""
    status = service.get("status") or {}
    return bool(revision(status)) or status.get("deploymentMode") in (None, "", "Serverless", "Knative")


def condition(status: Object, kind: str) -> Object:
    """One condition; empty where it is not set."""
    return next((dict(each) for each in status.get("conditions") or [] if each.get("type") == kind), {})


def traffic(status: Object) -> str:
    """`90 % pets-predictor-00001, 10 % pets-predictor-00002`."""
    targets = _component(status).get("traffic") or []
    return ", ".join(f"{target.get('percent') or 0} % {target.get('revisionName')}" for target in targets) or "nowhere"


def describe(status: Object) -> str:
    """The conditions that are not met."""
    unmet = [each for each in status.get("conditions") or [] if each.get("status") != "True"]
    texts = [
        f"{each['type']} is {each.get('status')}"
        + "".join(f" ({text})" for text in [": ".join(filter(None, (each.get("reason"), each.get("message"))))] if text)
        for each in unmet
    ]
    return "; ".join(texts) or "no condition is set yet"


def _broken(status: Object) -> Progress | None:
    model = status.get("modelStatus") or {}
    if model.get("transitionStatus") in _BROKEN:
        info = model.get("lastFailureInfo") or {}
        text = ": ".join(filter(None, (model["transitionStatus"], info.get("reason"), info.get("message"))))
        return Progress("broken", text, info.get("exitCode"))
    for each in status.get("conditions") or []:
        if each.get("status") == "False" and each.get("reason") in _BROKEN_REASONS:
            return Progress("broken", describe(status))
    return None
