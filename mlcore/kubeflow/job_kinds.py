"""The kinds of jobs that can be launched: their addresses, their pods, and what their conditions mean."""

from dataclasses import dataclass
from typing import Literal

from mlcore.kubeflow.cluster import Object, Resource
from mlcore.runtime.errors import UsageError

State = Literal["Created", "Running", "Restarting", "Suspended", "Succeeded", "Failed"]
FINISHED: tuple[State, ...] = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Verdict:
    """What a job's conditions say.

    Attributes:
        state: Where it is.
        reason: The controller's word for it.
        message: The controller's sentence.
    """

    state: State
    reason: str = ""
    message: str = ""

    def __str__(self) -> str:
        details = ": ".join(filter(None, (self.reason, self.message)))
        return f"{self.state} ({details})" if details else self.state


@dataclass(frozen=True)
class JobKind:
    """A kind of job.

    Attributes:
        resource: Where it is on the server.
        job_label: Label of its pods whose value is the job's name; empty where there is no pod to follow.
        container: Name of the container that does the work; empty: the first.
        conditions: Condition type -> state, the strongest first.
        owns_pods: Whether the job itself is the controller of its pods.
        retries: Whether a pod that fails is followed by one of another name that does the same work.
    """

    resource: Resource
    job_label: str
    container: str
    conditions: tuple[tuple[str, State], ...]
    owns_pods: bool
    retries: bool = False

    def verdict(self, job: Object) -> Verdict:
        """What the job's conditions say now."""
        conditions = (job.get("status") or {}).get("conditions") or []
        true = {condition["type"]: condition for condition in conditions if condition.get("status") == "True"}
        for kind, state in self.conditions:
            if kind in true:
                return Verdict(state, true[kind].get("reason") or "", true[kind].get("message") or "")
        status = job.get("status") or {}
        return Verdict("Running" if status.get("active") or status.get("jobsStatus") else "Created")

    def is_chief(self, job: Object, pod: Object) -> bool:
        """Whether a pod is the one whose log tells of the whole job."""
        labels = pod["metadata"].get("labels") or {}
        if self.resource.kind == "TFJob":
            roles = {role.lower() for role in job["spec"].get("tfReplicaSpecs") or {}}
            chief = next((role for role in ("chief", "master") if role in roles), "worker")
            role = labels.get("training.kubeflow.org/replica-type")
            return bool(role == chief and labels.get("training.kubeflow.org/replica-index") == "0")
        if self.resource.kind == "TrainJob":
            node = labels.get("jobset.sigs.k8s.io/replicatedjob-name", "node") == "node"
            index = labels.get("jobset.sigs.k8s.io/job-index", "0")
            return node and index == "0" and _completion_index(pod) == "0"
        return _completion_index(pod) == "0"


def _completion_index(pod: Object) -> str:
    name = "batch.kubernetes.io/job-completion-index"
    metadata = pod["metadata"]
    return (metadata.get("labels") or {}).get(name) or (metadata.get("annotations") or {}).get(name) or "0"


_TRAINING: tuple[tuple[str, State], ...] = (
    ("Failed", "Failed"),
    ("Succeeded", "Succeeded"),
    ("Suspended", "Suspended"),
    ("Restarting", "Restarting"),
    ("Running", "Running"),
    ("Created", "Created"),
)
_BATCH: tuple[tuple[str, State], ...] = (
    ("Failed", "Failed"),
    ("Complete", "Succeeded"),
    ("Suspended", "Suspended"),
)

JOB_KINDS = (
    JobKind(
        Resource("kubeflow.org", "v1", "tfjobs", "TFJob", "the training operator (kubeflow/trainer 1.9)"),
        "training.kubeflow.org/job-name", "tensorflow", _TRAINING, owns_pods=True,
    ),
    JobKind(
        Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob", "Kubeflow Trainer 2"),
        "jobset.sigs.k8s.io/jobset-name", "node", _BATCH, owns_pods=False,
    ),
    JobKind(
        Resource("batch", "v1", "jobs", "Job"),
        "batch.kubernetes.io/job-name", "", _BATCH, owns_pods=True, retries=True,
    ),
    JobKind(
        Resource("kubeflow.org", "v1beta1", "experiments", "Experiment", "Katib (kubeflow/katib)"),
        "", "", _TRAINING, owns_pods=False,
    ),
)  # fmt: skip


def kind_of(job: Object, source: str) -> JobKind:
    """The kind of a manifest's object.

    Raises:
        UsageError: It cannot be launched.
    """
    for kind in JOB_KINDS:
        if (job.get("apiVersion"), job.get("kind")) == (kind.resource.api_version, kind.resource.kind):
            if not isinstance(job.get("spec"), dict):
                raise UsageError(f"{source}: spec is missing")
            return kind
    known = ", ".join(f"{kind.resource.kind} ({kind.resource.api_version})" for kind in JOB_KINDS)
    raise UsageError(f"{source}: kind {job.get('kind')} ({job.get('apiVersion')}) cannot be launched; expected {known}")


def best_trial(job: Object) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics and the parameters of the best trial that a Katib Experiment has found."""
    best = (job.get("status") or {}).get("currentOptimalTrial") or {}
    metrics = {}
    for metric in (best.get("observation") or {}).get("metrics") or []:
        try:
            metrics[metric["name"]] = float(metric.get("latest"))
        except (TypeError, ValueError):
            continue
    outputs = {each["name"]: str(each["value"]) for each in best.get("parameterAssignments") or []}
    if best.get("bestTrialName"):
        outputs["best_trial"] = best["bestTrialName"]
    return metrics, outputs
