"""The step `launch`: a distributed job on a cluster, from its manifest to its outcome."""

import contextlib
import json
import logging
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mlcore.runtime.errors import DataError, MlcoreError, RestartError, Stopped, TransientError, UsageError
from mlcore.runtime.outputs import atomic_file
from mlcore.runtime.parameters import Range, step

if TYPE_CHECKING:
    from mlcore.kubeflow.cluster import Cluster, Object, Timing
    from mlcore.kubeflow.job_follower import Outcome
    from mlcore.kubeflow.job_kinds import JobKind

log = logging.getLogger(__name__)

OUTCOME = "outcome.json"
# A failure that may pass, killed, stopped, or to be started again; other signals, such as SIGSEGV, are bugs.
_MAY_PASS = (TransientError.exit_code, 128 + signal.SIGKILL, 128 + signal.SIGTERM, RestartError.exit_code)


@dataclass(frozen=True)
class LaunchResult:
    """What became of the job.

    Attributes:
        name: Name of the job.
        state: `Succeeded`; any other end is an error.
        seconds: From the job's start to its end.
        restarts: How often pods or containers were started again.
        metrics: Numbers that the chief printed as `name=value`, the last of each; of an Experiment those of its best
            trial.
        outputs: Texts that the chief printed as `name=text`, the last of each; of an Experiment the parameters of its
            best trial.
    """

    name: str
    state: str
    seconds: float
    restarts: int
    metrics: dict[str, float]
    outputs: dict[str, str]


@step
def launch(
    *,
    manifest: str,
    namespace: str | None = None,
    timeout_s: Annotated[float, Range(min=1)] = 86400,
    set: tuple[str, ...] = (),
    unique_name: bool = False,
    overwrite: bool = False,
    delete_on_stop: bool = False,
    output_dir: Path | None = None,
    context: str | None = None,
) -> LaunchResult:
    """Run a TFJob, TrainJob, Job or Katib Experiment: create it, show its chief's log, end as it ends.

    The job's conditions and what becomes of its pods are logged; the chief's `name=value` lines appear on stdout. The
    exit code tells whether another try can help: 65 if the job failed for good, 75 if it was preempted, lost its node
    or was not done in time. A job of this name that was made from the same manifest is followed, not made again; one
    that has succeeded is up to date.
    The cluster is that of the pod's service account, of KUBECONFIG or of ~/.kube/config.

    Args:
        manifest: The job's manifest: a file, - for standard input, or the YAML text itself. {{name}} and ${name} stand
            for the values of --set.
        namespace: Where the job runs; default: the namespace of the pod or of the kubeconfig's context.
        timeout_s: Longest wait for the job's end, in seconds; after that the job goes on, and the same command follows
            it further.
        set: name=value: value of a placeholder in the manifest.
        unique_name: Append five random characters to the job's name, for a new job with every run.
        overwrite: Delete a job of this name that was made from another manifest or has failed, and make it anew.
        delete_on_stop: Delete the job when this step gets SIGTERM or Ctrl-C.
        output_dir: Directory for outcome.json: state, reason, exit code, metrics; written after a failure too.
        context: Context of the kubeconfig.

    Returns:
        The outcome of a job that succeeded.

    Raises:
        UsageError: A wrong manifest or placeholder; no cluster is configured; the cluster refuses, or lacks this kind.
        DataError: The job failed, or one of this name was made from another manifest.
        TransientError: Not done in time; the job failed for a reason that may pass; the cluster does not answer.
    """
    from mlcore.kubeflow import job_kinds, job_template

    if output_dir is not None:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output-dir={output_dir}: expected a directory ({error.strerror})") from error
    text, source = job_template.read_text(manifest)
    job = job_template.render(text, source, job_template.parse_values(set))
    kind = job_kinds.kind_of(job, source)
    job = job_template.named(job, source, unique_name=unique_name)
    work = Launch(job, kind, namespace=namespace, timeout_s=timeout_s, overwrite=overwrite,
                  delete_on_stop=delete_on_stop, output_dir=output_dir, context=context)  # fmt: skip
    return work.run()


class Launch:
    """One run of the step.

    Args:
        job: The job, with its name.
        kind: Its kind.
        namespace: As `launch` has it.
        timeout_s: As `launch` has it.
        overwrite: As `launch` has it.
        delete_on_stop: As `launch` has it.
        output_dir: As `launch` has it.
        context: As `launch` has it.
        timing: Waits and bounds of the connection.
    """

    def __init__(
        self,
        job: "Object",
        kind: "JobKind",
        *,
        namespace: str | None,
        timeout_s: float,
        overwrite: bool = False,
        delete_on_stop: bool = False,
        output_dir: Path | None = None,
        context: str | None = None,
        timing: "Timing | None" = None,
    ) -> None:
        self._job, self._kind, self._namespace, self._timeout_s = job, kind, namespace, timeout_s
        self._overwrite, self._delete_on_stop, self._output_dir = overwrite, delete_on_stop, output_dir
        self._context, self._timing = context, timing
        self._cluster: Cluster | None = None
        self._mine = threading.Event()  # set once the job in the cluster may be ours
        self._answered = threading.Event()  # no creation is on its way
        self._answered.set()
        self._abandoned = threading.Event()

    @property
    def _what(self) -> str:
        return f"{self._kind.resource.kind} {self._job['metadata']['name']}"

    def run(self) -> LaunchResult:
        """Create or find the job, follow it, and write its outcome.

        Raises:
            MlcoreError: As `launch` says.
            Stopped: By a signal.
        """
        from mlcore.kubeflow.background import Background

        work = Background(self._work)
        try:
            return work.result()
        except Stopped:
            self._abandoned.set()
            if self._cluster is not None:
                self._cluster.close()
            if self._delete_on_stop and self._mine.is_set():
                deletion = Background(self._delete)
                if not deletion.wait(self._stop_s + 1):
                    log.error("%s could not be deleted in time", self._what)
            elif self._mine.is_set():
                log.info("%s goes on; the same command follows it", self._what)
            raise

    @property
    def _stop_s(self) -> float:
        from mlcore.kubeflow.cluster import Timing

        return (self._timing or Timing()).stop_s

    def _work(self) -> LaunchResult:
        from mlcore.kubeflow.cluster import Timing, connect

        started = time.monotonic()
        outcome = None
        try:
            self._cluster = connect(context=self._context, timing=(self._timing or Timing()).bounded(self._timeout_s))
            namespace = self._job["metadata"].get("namespace")
            if self._namespace is not None and namespace not in (None, self._namespace):
                raise UsageError(f"--namespace={self._namespace}: the manifest says metadata.namespace={namespace}")
            self._namespace = self._namespace or namespace or self._cluster.namespace
            there = self._create_or_find()
            outcome = self._follow(there, started)
            self._raise_on_failure(outcome)
        except MlcoreError as error:
            self._write_outcome(outcome, error)
            raise
        finally:
            if self._cluster is not None:
                self._cluster.close()
        self._write_outcome(outcome, None)
        return LaunchResult(
            name=self._job["metadata"]["name"], state=outcome.verdict.state, seconds=outcome.seconds,
            restarts=outcome.restarts, metrics=outcome.metrics, outputs=outcome.outputs,
        )  # fmt: skip

    def _create_or_find(self) -> "Object":
        """The job in the cluster: made now, or made before from the same manifest."""
        from mlcore.kubeflow import job_template
        from mlcore.kubeflow.answers import Conflict
        from mlcore.kubeflow.job_kinds import FINISHED

        assert self._cluster is not None and self._namespace is not None
        cluster, resource, namespace = self._cluster, self._kind.resource, self._namespace
        wanted = job_template.with_digest(self._job)
        wanted["metadata"]["namespace"] = namespace
        name = wanted["metadata"]["name"]
        for _ in range(5):
            there = cluster.get(resource, namespace, name)
            if there is None:
                self._mine.set()
                self._answered.clear()
                try:
                    made = cluster.create(resource, namespace, wanted)
                except Conflict as error:
                    if not error.exists:
                        raise
                    self._mine.clear()
                    continue  # made meanwhile, by an earlier try of ours or by someone else
                finally:
                    self._answered.set()
                log.info("%s was created in namespace %s", self._what, namespace)
                return made
            if there["metadata"].get("deletionTimestamp"):
                self._await_gone(there)
                continue
            state = self._kind.verdict(there).state
            same = job_template.is_same(wanted, there)
            if same and not (self._overwrite and state == "Failed"):
                self._mine.set()
                done = "is up to date: it has succeeded" if state == "Succeeded" else f"is there already ({state})"
                log.info("%s %s", self._what, f"{done}; following it" if state not in FINISHED else done)
                return there
            if not self._overwrite:
                raise DataError(
                    f"{self._what}: is in namespace {namespace} already, made from another manifest"
                    f"{self._difference(wanted, there)}; give it another name, or pass --overwrite=true"
                )
            log.info("%s (%s) is deleted, to be made anew", self._what, state)
            try:
                cluster.delete(resource, namespace, name, uid=there["metadata"]["uid"])
            except Conflict:
                continue
            self._await_gone(there)
        raise TransientError(f"{self._what}: others create and delete it at the same time")

    @staticmethod
    def _difference(wanted: "Object", there: "Object") -> str:
        from mlcore.kubeflow.job_template import difference

        field = difference(wanted["spec"], there.get("spec"), "spec")
        return f" ({field} differs)" if field else ""

    def _await_gone(self, there: "Object") -> None:
        """Wait until a deleted job and its pods are gone, so that the new one's get their names.

        Raises:
            TransientError: The job itself is still there.
        """
        from mlcore.kubeflow.answers import Forbidden
        from mlcore.kubeflow.cluster import PODS

        assert self._cluster is not None and self._namespace is not None
        cluster, name, uid = self._cluster, there["metadata"]["name"], there["metadata"]["uid"]
        end = time.monotonic() + cluster.timing.gone_s
        while (found := cluster.get(self._kind.resource, self._namespace, name)) and found["metadata"]["uid"] == uid:
            if time.monotonic() > end:
                raise TransientError(f"{self._what}: was deleted, and is still there after {cluster.timing.gone_s:g} s")
            time.sleep(min(1, cluster.timing.log_poll_s))
        if not self._kind.job_label or not self._kind.owns_pods:
            return
        selectors = {"labelSelector": f"{self._kind.job_label}={name}"}
        end = time.monotonic() + cluster.timing.gone_s
        while time.monotonic() < end:
            try:
                pods = cluster.list(PODS, self._namespace, selectors)["items"]
            except Forbidden as error:
                log.warning("the pods of the deleted %s are not waited for: %s", self._what, error)
                return
            owners = [owner for pod in pods for owner in pod["metadata"].get("ownerReferences") or []]
            if all(owner.get("uid") != uid for owner in owners):
                return
            time.sleep(min(1, cluster.timing.log_poll_s))
        log.warning("pods of the deleted %s are still there; going on", self._what)

    def _follow(self, there: "Object", started: float) -> "Outcome":
        from mlcore.kubeflow.job_follower import DeadlineExceeded, JobFollower

        assert self._cluster is not None
        follower = JobFollower(self._cluster, self._kind, there, self._show_metric)
        try:
            return follower.follow(self._timeout_s, started)
        except DeadlineExceeded as error:
            raise TransientError(f"{error}; it goes on, the same command follows it") from error

    def _show_metric(self, line: str) -> None:
        if not self._abandoned.is_set():
            with contextlib.suppress(BrokenPipeError):  # nobody reads them any more; the job goes on
                print(line, file=sys.stdout, flush=True)

    def _raise_on_failure(self, outcome: "Outcome") -> None:
        """End as the job ended.

        Raises:
            DataError: It failed, and would again.
            TransientError: It failed for a reason that may pass.
        """
        if outcome.verdict.state != "Failed":
            return
        parts = [f"{self._what}: {outcome.verdict}"]
        if outcome.failure is not None:
            parts.append(str(outcome.failure))
        if outcome.last_lines:
            parts.append("its last lines: " + " | ".join(line.strip() for line in outcome.last_lines))
        kind = TransientError if may_pass(outcome) else DataError
        raise kind("; ".join(parts))

    def _write_outcome(self, outcome: "Outcome | None", error: MlcoreError | None) -> None:
        if self._output_dir is None:
            return
        record: dict[str, object] = {"name": self._job["metadata"]["name"], "namespace": self._namespace}
        record |= {"kind": self._kind.resource.kind, "state": "Unknown"}
        if outcome is not None:
            record |= {key: value for key, value in asdict(outcome).items() if key not in ("verdict", "last_lines")}
            record |= asdict(outcome.verdict)
        record |= {"exit_code": error.exit_code if error else 0, "error": str(error) if error else ""}
        path = self._output_dir / OUTCOME
        try:
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        except OSError as failure:
            if error is None:
                raise TransientError(f"{path}: cannot be written ({failure.strerror})") from failure
            log.error("%s: cannot be written (%s)", path, failure.strerror)

    def _delete(self) -> None:
        """Delete the job, within what is left of the ten seconds after SIGTERM."""
        from mlcore.kubeflow.cluster import Cluster
        from mlcore.kubeflow.job_template import is_same, with_digest

        if self._cluster is None or self._namespace is None:
            return
        self._answered.wait(self._stop_s / 3)  # deleting what is only being made would find nothing
        patience_s = 2 * self._stop_s / 3
        timing = replace(self._cluster.timing, patience_s=patience_s, connect_s=2, answer_s=3, backoff_s=0.3)
        hurried = Cluster(self._cluster.client, self._cluster.namespace, timing)
        name = self._job["metadata"]["name"]
        try:
            there = hurried.get(self._kind.resource, self._namespace, name)
            # Ours may not have been made, and someone else's have the name.
            if there is None or not is_same(with_digest(self._job), there):
                return
            hurried.delete(self._kind.resource, self._namespace, name, uid=there["metadata"]["uid"])
            log.info("%s was deleted", self._what)
        except MlcoreError as error:
            log.error("%s could not be deleted: %s", self._what, error)


def may_pass(outcome: "Outcome") -> bool:
    """Whether a failed job may succeed when it is made again: preempted, lost, stopped, or a transient exit code."""
    if "DeadlineExceeded" in outcome.verdict.reason or "deadline" in outcome.verdict.message:
        return True
    failure = outcome.failure
    if failure is None:
        return False
    if failure.reason == "OOMKilled":
        return False
    return failure.code in _MAY_PASS
