"""The step `deploy`: an exported model as a KServe InferenceService, or as the canary of one."""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from mlcore.runtime.errors import DataError, MlcoreError, Stopped, TransientError, UsageError
from mlcore.runtime.parameters import Range, step

if TYPE_CHECKING:
    from mlcore.kubeflow.cluster import Object, Timing
    from mlcore.kubeflow.inference_service import Model, Progress, Rollout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeployResult:
    """What is served now.

    Attributes:
        model_name: Name of the InferenceService.
        state: `created`, `updated`, `promoted` or `up to date`.
        url: Address for requests.
        cluster_url: Address inside the cluster.
        revision: Newest revision; empty where the deployment has none.
        canary_percent: Traffic that the newest revision gets.
        seconds: Until it was ready.
    """

    model_name: str
    state: str
    url: str
    cluster_url: str
    revision: str
    canary_percent: int
    seconds: float


@step
def deploy(
    *,
    model_name: str,
    storage_uri: str | None = None,
    version: Annotated[int | None, Range(min=1, max=2**63 - 1)] = None,
    canary_percent: Annotated[int, Range(min=0, max=100)] = 100,
    promote: bool = False,
    namespace: str | None = None,
    timeout_s: Annotated[float, Range(min=1)] = 600,
    runtime: str | None = None,
    protocol: Literal["v1", "v2", "grpc-v1", "grpc-v2"] | None = None,
    image: str | None = None,
    arg: tuple[str, ...] = (),
    service_account: str | None = None,
    min_replicas: Annotated[int | None, Range(min=0)] = None,
    max_replicas: Annotated[int | None, Range(min=1)] = None,
    cpu: str | None = None,
    memory: str | None = None,
    gpus: Annotated[int, Range(min=0)] = 0,
    rollback: bool = True,
    overwrite: bool = False,
    context: str | None = None,
) -> DeployResult:
    """Serve an exported model on KServe: create or update its InferenceService and wait until it answers.

    The service is applied by the server (field manager mlcore), so that fields which others set stay theirs. With
    --canary-percent below 100 the version that serves now keeps the rest of the traffic, until --promote=true. What
    does not get ready is rolled back: to the former spec, or to nothing where there was none. Applying the same again
    changes nothing.
    The cluster is that of the pod's service account, of KUBECONFIG or of ~/.kube/config.

    Args:
        model_name: Name of the InferenceService, and of the model in requests.
        storage_uri: Directory that holds the numbered versions: pvc://claim/path, s3://, gs://, https:// and what else
            KServe reads.
        version: Serve this version alone; default: what the server finds, the highest.
        canary_percent: Traffic that this version gets, in percent; needs KServe with Knative.
        promote: Give all traffic to the version that is the canary now; --storage-uri is not needed.
        namespace: Where it runs; default: the namespace of the pod or of the kubeconfig's context.
        timeout_s: Longest wait until it is ready, in seconds.
        runtime: Name of a ServingRuntime; default: KServe's own for TensorFlow, TensorFlow Serving.
        protocol: Protocol of requests, as KServe calls it; TensorFlow Serving speaks v1 and grpc-v1.
        image: Serve with this image of mlcore serve, or one with its flags, in place of a runtime.
        arg: More arguments of the container.
        service_account: Service account whose secrets open the storage.
        min_replicas: Least number of pods; 0 lets Knative stop an idle service.
        max_replicas: Most pods.
        cpu: CPUs of each pod, such as 500m or 2.
        memory: Memory of each pod, such as 4Gi.
        gpus: GPUs of each pod.
        rollback: Take a change back that does not get ready.
        overwrite: Take over fields that others have set to something else.
        context: Context of the kubeconfig.

    Returns:
        The address, and what is behind it.

    Raises:
        UsageError: Wrong values; no cluster is configured; the cluster refuses, or has no KServe.
        DataError: The model cannot be served, or others have set fields of this service.
        TransientError: Not ready in time; the cluster does not answer.
    """
    from mlcore.kubeflow import inference_service

    model = None
    if promote:
        inference_service.check_name(model_name)
        if storage_uri is not None or canary_percent != 100:
            raise UsageError(
                "--promote=true: leave out --storage-uri and --canary-percent, the canary is there already"
            )
    elif storage_uri is None:
        raise UsageError("--storage-uri must be given, or --promote=true")
    else:
        model = inference_service.Model(
            model_name, storage_uri, version, runtime, protocol, image, arg, service_account, min_replicas,
            max_replicas, cpu, memory, gpus,
        )  # fmt: skip
        model.check()
    return Deployment(
        model_name, model, canary_percent, namespace=namespace, timeout_s=timeout_s, rollback=rollback,
        overwrite=overwrite, context=context,
    ).run()  # fmt: skip


class Deployment:
    """One run of the step.

    Args:
        name: Name of the InferenceService.
        model: What to serve; None: promote what is there.
        percent: Traffic that it gets.
        namespace: As `deploy` has it.
        timeout_s: As `deploy` has it.
        rollback: As `deploy` has it.
        overwrite: As `deploy` has it.
        context: As `deploy` has it.
        timing: Waits and bounds of the connection.
    """

    def __init__(
        self,
        name: str,
        model: "Model | None",
        percent: int,
        *,
        namespace: str | None,
        timeout_s: float,
        rollback: bool = True,
        overwrite: bool = False,
        context: str | None = None,
        timing: "Timing | None" = None,
    ) -> None:
        self._name, self._model, self._percent, self._timeout_s = name, model, percent, timeout_s
        self._asked_namespace, self._rollback, self._overwrite = namespace, rollback, overwrite
        self._context, self._timing = context, timing
        self._what = f"InferenceService {name}"

    def run(self) -> DeployResult:
        """Apply, wait, and roll back what does not get ready.

        Raises:
            MlcoreError: As `deploy` says.
            Stopped: By a signal.
        """
        from mlcore.kubeflow.background import Background

        try:
            return Background(self._work).result()
        except Stopped:
            log.info("%s is left as it is; the same command goes on", self._what)
            raise

    def _work(self) -> DeployResult:
        from mlcore.kubeflow.cluster import Timing, connect

        timing = self._timing or Timing()
        self._cluster = connect(context=self._context, timing=timing.bounded(self._timeout_s))
        try:
            return self._deploy()
        finally:
            self._cluster.close()

    def _deploy(self) -> DeployResult:
        from mlcore.kubeflow.answers import Conflict
        from mlcore.kubeflow.inference_service import RESOURCE, Rollout, manifest, revision

        started = time.monotonic()
        self._namespace = self._asked_namespace or self._cluster.namespace
        before = self._cluster.get(RESOURCE, self._namespace, self._name)
        wanted = manifest(self._name, self._namespace, self._predictor(before))
        try:
            # What is promoted is the live spec itself, so there is nothing of others to be overwritten.
            force = self._overwrite or self._model is None
            applied = self._cluster.apply(RESOURCE, self._namespace, wanted, force=force)
        except Conflict as error:
            raise DataError(f"{error}; --overwrite=true takes these fields over") from error
        rollout = Rollout(before, applied, self._percent)
        state = "created" if before is None else "updated" if rollout.changed else "up to date"
        if self._model is None and rollout.changed:
            state = "promoted"
        log.info("%s in namespace %s: %s", self._what, self._namespace, state)
        try:
            ready = self._wait(rollout, self._timeout_s - (time.monotonic() - started))
        except MlcoreError as error:
            if rollout.changed and self._rollback:
                raise type(error)(f"{error}; {self._roll_back(before, applied)}") from error
            raise
        status = ready["status"]
        return DeployResult(
            model_name=self._name, state=state, url=status["url"],
            cluster_url=(status.get("address") or {}).get("url") or "", revision=revision(status),
            canary_percent=self._percent, seconds=time.monotonic() - started,
        )  # fmt: skip

    def _predictor(self, before: "Object | None") -> "Object":
        """The predictor to apply."""
        from mlcore.kubeflow.inference_service import has_revisions

        live = (before or {}).get("spec", {}).get("predictor") or {}
        if self._model is None:
            if before is None:
                raise UsageError(f"--promote=true: there is no {self._what} in namespace {self._namespace}")
            if live.get("canaryTrafficPercent") in (None, 100):
                log.info("%s has no canary", self._what)
                return dict(live)
            return {**live, "canaryTrafficPercent": 100}
        predictor = self._model.predictor()
        if before is None and self._percent < 100:
            log.warning("%s is new: nothing else can take the other %d %%", self._what, 100 - self._percent)
            self._percent = 100
        if self._percent < 100 and before is not None and not has_revisions(before):
            mode = before["status"]["deploymentMode"]
            raise UsageError(
                f"--canary-percent={self._percent}: {self._what} is deployed as {mode}, which cannot split traffic; it "
                "needs the Serverless mode (Knative), or a second service"
            )
        if self._percent < 100 or "canaryTrafficPercent" in live:
            predictor["canaryTrafficPercent"] = self._percent
        return predictor

    def _wait(self, rollout: "Rollout", timeout_s: float) -> "Object":
        """Wait until the service is ready; the service.

        Raises:
            DataError: It cannot get ready.
            TransientError: It did not in time, or was deleted meanwhile.
        """
        from mlcore.kubeflow.inference_service import RESOURCE
        from mlcore.kubeflow.watches import Feed, Watch

        feed = Feed()
        feed.add("service", Watch(self._cluster, RESOURCE, self._namespace, name=self._name))
        settle_s = self._cluster.timing.settle_s
        started = time.monotonic()
        broken_since: float | None = None
        service: Object | None = None
        told = ""
        while True:
            waited_s = time.monotonic() - started
            if service is not None:
                progress = rollout.progress(service, waited_s, settle_s)
                if progress.text != told:
                    told = progress.text
                    log.info("%s: %s", self._what, told)
                if progress.state == "ready":
                    return service
                broken_since = (broken_since or time.monotonic()) if progress.state == "broken" else None
                if broken_since is not None and time.monotonic() - broken_since >= settle_s:
                    raise self._failure(progress)
            if waited_s >= timeout_s:
                raise TransientError(
                    f"{self._what}: not ready after {self._timeout_s:g} s: {told or 'nothing was heard'}"
                )
            item = feed.next(min(timeout_s - waited_s, 0.5, settle_s))
            if item is None:
                continue
            _, change = item
            if isinstance(change, Exception):
                raise change
            if change.deleted or (change.listed and not change.objects):
                raise TransientError(f"{self._what}: was deleted by someone else")
            service = change.objects[-1]

    def _failure(self, progress: "Progress") -> MlcoreError:
        kind = TransientError if progress.exit_code == TransientError.exit_code else DataError
        code = f" (exit code {progress.exit_code})" if progress.exit_code is not None else ""
        return kind(f"{self._what}: cannot be served: {progress.text}{code}")

    def _roll_back(self, before: "Object | None", applied: "Object") -> str:
        """Undo the change; what came of it, in words."""
        from mlcore.kubeflow.cluster import Cluster, Timing
        from mlcore.kubeflow.inference_service import RESOURCE, Rollout, manifest, revision

        # Undoing it is not bounded by the time that the change had.
        self._cluster.close()
        self._cluster = Cluster(self._cluster.client, self._cluster.namespace, self._timing or Timing())
        try:
            if before is None:
                self._cluster.delete(RESOURCE, self._namespace, self._name, uid=applied["metadata"]["uid"])
                return "rolled back: it was new, and is deleted again"
            former = manifest(self._name, self._namespace, before["spec"]["predictor"])
            failed = self._cluster.get(RESOURCE, self._namespace, self._name)
            again = self._cluster.apply(RESOURCE, self._namespace, former, force=True)
        except MlcoreError as error:
            return f"and could not be rolled back: {error}"
        percent = before["spec"]["predictor"].get("canaryTrafficPercent", 100)
        try:
            served = revision(before.get("status") or {})
            self._wait(Rollout(failed, again, percent, served), self._cluster.timing.rollback_s)
        except MlcoreError as error:
            return f"rolled back to the former spec, which is not ready yet: {error}"
        return "rolled back to the former spec, which is ready"
