"""The training operator's loop: makes the pods of a job, makes some again, sees when the job is over, and tidies up."""

import concurrent.futures
import fcntl
import logging
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from mlcore.kubeflow.local.console import Console
from mlcore.kubeflow.local.engine import Engine
from mlcore.kubeflow.local.plan import ClaimPlan, PodPlan, VolumePlan, claim_volume
from mlcore.kubeflow.local.pod import Pod, error_of
from mlcore.kubeflow.local.pod_template import LABEL, NAMESPACE_LABEL
from mlcore.kubeflow.local.rules import Outcome, exceeded, is_deleted, is_recreated, verdict
from mlcore.kubeflow.local.tfjob import TFJob
from mlcore.runtime.errors import UsageError
from mlcore.runtime.signals import StopFlag

log = logging.getLogger(__name__)

_POLL_S = 0.2
_RECREATION_PAUSE_S = 1.0
_MANY_RECREATIONS = 5


def labels_of(job: TFJob) -> dict[str, str]:
    """What marks everything that belongs to a job."""
    return {LABEL: job.name, NAMESPACE_LABEL: job.namespace}


class Operator:
    """Runs one job.

    Args:
        job: The job.
        plans: Its pods.
        engine: The engine.
    """

    def __init__(self, job: TFJob, plans: Sequence[PodPlan], engine: Engine) -> None:
        self.job, self.plans, self.engine = job, plans, engine
        self.network = f"{job.namespace}.{job.name}"
        self.pods: dict[str, Pod] = {}
        self.recreations: dict[str, int] = {plan.name: 0 for plan in plans}
        self.restarts_before: dict[str, int] = {plan.name: 0 for plan in plans}
        self.started_at: dict[str, float] = {}
        self.deleted: set[str] = set()  # pods that ran until they were deleted
        self._gone: set[str] = set()
        self._ours = False
        self._lock: IO[str] | None = None
        self._labels = [f"--label={key}={value}" for key, value in labels_of(job).items()]
        self._console = Console(max((len(plan.name) for plan in plans), default=0))
        self._changed = threading.Event()
        self._made_at: dict[str, float] = {}

    def prepare(self, *, overwrite: bool) -> None:
        """Make network and claims; what an earlier run of the job left goes.

        Raises:
            UsageError: Such a job runs here already, and not `overwrite`; or another container has a pod's name.
        """
        what = f"TFJob {self.job.namespace}/{self.job.name}"
        if not self._take_lock():
            raise UsageError(f"{what} is run by another mlcore local-tfjob; stop that first")
        labels = labels_of(self.job)
        running = self.engine.containers(labels, running=True)
        if running and not overwrite:
            raise UsageError(
                f"{what} is here already: {', '.join(running)} "
                f"{'is' if len(running) == 1 else 'are'} running; --overwrite=true replaces it"
            )
        left = self.engine.containers(labels, running=False)
        if left:
            log.info("removing what an earlier run left: %s", ", ".join(left))
            self.engine.remove(*left)
        self._remove_rest()
        for plan in self.plans:
            if self.engine.state(plan.name) is not None:
                raise UsageError(f"another container has the name {plan.name}: remove it, or name the job otherwise")
        made = self.engine.call("network", "create", *self._labels, self.network, check=False)
        if made.returncode != 0:
            raise UsageError(f"docker network create: {made.stderr.strip()}")
        self._ours = True
        for claim in {claim.name: claim for plan in self.plans for claim in plan.claims}.values():
            self._provide(claim)

    def _take_lock(self) -> bool:
        """Whether nobody else runs the job; the lock goes with this process, however it ends."""
        path = Path(tempfile.gettempdir()) / f"mlcore-local-tfjob.{self.network}.lock"
        try:
            self._lock = path.open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.chmod(0o666)
        except BlockingIOError:
            return False
        except OSError as error:  # no folder to write to, or another user's file: then without it
            log.debug("%s: %s", path, error)
        return True

    def close(self) -> None:
        """Let others run the job."""
        if self._lock is not None:
            self._lock.close()

    def _provide(self, claim: ClaimPlan) -> None:
        if claim.directory is not None:
            log.info("claim %s: the directory %s", claim.name, claim.directory)
            return
        volume = claim_volume(self.job.namespace, claim.name)
        if self.engine.has_volume(volume):
            log.info("claim %s: the volume %s, which is there", claim.name, volume)
            return
        log.info("claim %s: the new volume %s", claim.name, volume)
        mode = 0o777 if claim.group is None else 0o2777
        plan = VolumePlan(volume, mode, claim.group, folders=_with_parents(claim.folders))
        # Not marked as the job's: it outlives the job.
        self.engine.create_volumes([plan], [], self.plans[0].main.image)

    def run(self, stop: StopFlag) -> Outcome:
        """Run the job to its end.

        Raises:
            Stopped: Asked for; everything is stopped and removed.
        """
        begin = time.monotonic()
        for plan in self.plans:
            self._make(plan)
        while True:
            self._changed.wait(_POLL_S)
            self._changed.clear()
            if stop.is_set():
                raise stop.error()
            error = error_of(list(self.pods.values()))
            if error is not None:
                raise error
            seen = [(pod, pod.replica) for pod in self.pods.values()]  # once: pods change while they are looked at
            outcome = exceeded(self.job, [replica for _, replica in seen], time.monotonic() - begin)
            if outcome is not None:
                return outcome
            again = [pod for pod, replica in seen if pod.gone or is_recreated(pod.plan.restart_policy, replica)]
            outcome = verdict(self.job, [replica for pod, replica in seen if pod not in again])
            if outcome is not None:
                return outcome
            for pod in again:
                self._make_again(pod, stop)

    def _make(self, plan: PodPlan) -> None:
        host = self.job.host_name(plan.type, plan.index)
        names = (host, f"{host}.cluster.local", host.removesuffix(".svc"), plan.name)
        network = [f"--network={self.network}", f"--hostname={plan.name}", *(f"--network-alias={n}" for n in names)]
        now = time.monotonic()
        self.started_at.setdefault(plan.name, now)
        self._made_at[plan.name] = now
        self.pods[plan.name] = Pod(
            plan, self.engine, self._console, network=network, labels=self._labels, changed=self._changed.set
        )

    def _make_again(self, pod: Pod, stop: StopFlag) -> None:
        name = pod.plan.name
        why = "was removed" if pod.gone else "never ran" if pod.exit_code is None else f"ended with {pod.exit_code}"
        log.info("%s: %s; deleted and made again", name, why)
        pod.delete()
        stop.wait(max(0.0, self._made_at[name] + _RECREATION_PAUSE_S - time.monotonic()))
        self.recreations[name] += 1
        self.restarts_before[name] += pod.restarts
        if self.recreations[name] == _MANY_RECREATIONS:
            bound = self.job.active_deadline_s
            log.warning(
                "%s was made again %d times; backoffLimit does not bound that, %s", name, _MANY_RECREATIONS,
                f"activeDeadlineSeconds ({bound}) does" if bound else "and activeDeadlineSeconds is not set",
            )  # fmt: skip
        self._make(pod.plan)

    def tidy_up(self, outcome: Outcome, stop: StopFlag, *, remove: bool) -> None:
        """Delete pods as cleanPodPolicy says; where a limit was exceeded all of them, whatever it says."""
        policy = "All" if remove or outcome.by_limit else self.job.clean_pod_policy
        self._delete(pod for pod in self.pods.values() if is_deleted(policy, pod.phase))
        kept = self._kept()
        running = [pod.plan.name for pod in kept if pod.phase in ("Pending", "Running")]
        if running:
            log.warning(
                "cleanPodPolicy None: %s %s running, on a cluster too; set it to Running to have them deleted",
                ", ".join(running), "keeps" if len(running) == 1 else "keep",
            )  # fmt: skip
        if running and self.job.ttl_s is not None:
            log.info("waiting ttlSecondsAfterFinished (%d s) before all is removed", self.job.ttl_s)
            if stop.wait(self.job.ttl_s):
                raise stop.error()
            self._delete(kept)
        kept = self._kept()
        if not running or not kept:
            self._remove_rest(kept)
        if kept:
            log.info("kept for docker logs: %s; the next run of the job removes them, and --remove=true keeps none",
                     ", ".join(pod.plan.name for pod in kept))  # fmt: skip
        for pod in kept:
            pod.leave()

    def _kept(self) -> list[Pod]:
        return [pod for name, pod in self.pods.items() if name not in self._gone]

    def clear(self) -> None:
        """Stop every pod, each with its own grace period, and remove everything but the claims.

        A second Ctrl-C ends the waiting: what still runs is killed.
        """
        if not self._ours:
            return
        try:
            self._delete(self._kept())
        except BaseException:
            self.engine.remove(*self.engine.containers(labels_of(self.job), running=False))
            self._delete(self._kept(), grace_s=0)
            raise
        finally:
            self._remove_rest()

    @property
    def restarts(self) -> int:
        """Restarts of all replicas."""
        return sum(self._restarts_of(name) for name in self.pods)

    def _restarts_of(self, name: str) -> int:
        return self.recreations[name] + self.restarts_before[name] + self.pods[name].restarts

    def table(self) -> list[str]:
        """A line for each replica: state, last exit code, restarts, seconds since it was first made."""
        rows = [("replica", "state", "exit code", "restarts", "seconds")]
        for name, pod in self.pods.items():
            state = "Deleted" if name in self.deleted else pod.phase
            code = "-" if pod.exit_code is None else str(pod.exit_code)
            seconds = (pod.ended_at or time.monotonic()) - self.started_at[name]
            rows.append((name, state, code, str(self._restarts_of(name)), f"{seconds:.1f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(cell.ljust(width) if place < 2 else cell.rjust(width)
                      for place, (cell, width) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]  # fmt: skip

    def _delete(self, pods: Iterable[Pod], grace_s: int | None = None) -> None:
        pods = list(pods)
        if not pods:
            return
        running = [pod.plan.name for pod in pods if pod.phase in ("Pending", "Running")]
        if running:
            log.info("stopping %s", ", ".join(running))
        self.deleted.update(running)
        pool = concurrent.futures.ThreadPoolExecutor(max_workers=len(pods))
        try:
            for job in [pool.submit(pod.delete, grace_s) for pod in pods]:
                job.result()
        finally:
            pool.shutdown(wait=False)
        self._gone.update(pod.plan.name for pod in pods)

    def _remove_rest(self, keep: Sequence[Pod] = ()) -> None:
        """Network and volumes of the job, where nothing uses them any more."""
        kept = {volume.name for pod in keep for volume in pod.plan.volumes}
        filters = [f"--filter=label={key}={value}" for key, value in labels_of(self.job).items()]
        listed = self.engine.call("volume", "ls", "--quiet", *filters, check=False).stdout.split()
        self.engine.remove_volumes(*(name for name in listed if name not in kept))
        self.engine.call("network", "rm", self.network, check=False)


def _with_parents(folders: Sequence[str]) -> tuple[str, ...]:
    every: dict[str, None] = {}
    for folder in folders:
        parts = folder.split("/")
        every |= {"/".join(parts[:count]): None for count in range(1, len(parts) + 1)}
    return tuple(every)
