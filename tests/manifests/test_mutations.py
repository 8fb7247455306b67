"""Each kind of mistake in a manifest is found: a rendered overlay is changed, and its check must name the change."""

import copy
from typing import Any

import pytest

from tests.manifests import apis, pods
from tests.manifests.conftest import CHECKS, with_runtime
from tests.manifests.rendering import find


def job(documents, name):
    """Specification of a Job's pod."""
    return find(documents, "Job", name)["spec"]["template"]["spec"]


def step(documents, name="pets-convert"):
    return job(documents, name)["containers"][0]


def wait(documents, name="pets-convert"):
    return job(documents, name)["initContainers"][0]


def rules(documents, name="pets-extract"):
    return find(documents, "Job", name)["spec"]["podFailurePolicy"]["rules"]


def replica(documents, role="Worker"):
    return find(documents, "TFJob")["spec"]["tfReplicaSpecs"][role]


def member(documents, role="Worker"):
    return replica(documents, role)["template"]["spec"]["containers"][0]


def trial(documents):
    return find(documents, "Experiment")["spec"]["trialTemplate"]


def trial_pod(documents):
    return trial(documents)["trialSpec"]["spec"]["template"]["spec"]


def predictor(documents):
    return find(documents, "InferenceService")["spec"]["predictor"]


def node(documents):
    jobs = find(documents, "ClusterTrainingRuntime")["spec"]["template"]["spec"]["replicatedJobs"]
    return jobs[0]["template"]["spec"]["template"]["spec"]["containers"][0]


def replace(args, old, new):
    args[args.index(old)] = new


# check, overlay, what is changed, a part of what is to be said about it
MUTATIONS: list[tuple[str, str, Any, str]] = [
    # security
    ("security", "pets", lambda d: step(d)["securityContext"].update(allowPrivilegeEscalation=True), "Escalation"),
    ("security", "pets", lambda d: step(d)["securityContext"].pop("readOnlyRootFilesystem"), "readOnlyRoot"),
    ("security", "pets", lambda d: step(d)["securityContext"]["capabilities"].update(add=["NET_RAW"]), "capabilities"),
    ("security", "pets", lambda d: job(d, "pets-convert")["securityContext"].pop("runAsNonRoot"), "runAsNonRoot"),
    ("security", "pets", lambda d: job(d, "pets-convert")["securityContext"].pop("seccompProfile"), "seccompProfile"),
    ("security", "pets", lambda d: job(d, "pets-convert")["securityContext"].update(runAsUser=0), "root"),
    ("security", "pets", lambda d: job(d, "pets-convert").update(hostNetwork=True), "hostNetwork"),
    ("security", "pets", lambda d: job(d, "pets-convert")["volumes"].append({"name": "x", "hostPath": {}}), "volume"),
    ("security", "pets", lambda d: wait(d).pop("securityContext"), "wait: allowPrivilegeEscalation"),
    ("security", "pets", lambda d: member(d)["securityContext"].update(privileged=True), "privileged"),
    ("security", "pets", lambda d: predictor(d).pop("securityContext"), "InferenceService/pets: no securityContext"),
    ("security", "pets", lambda d: find(d, "ServingRuntime")["spec"]["containers"][0].pop("securityContext"), "Serv"),
    ("security", "trainer-mnist", lambda d: node(d)["securityContext"].pop("capabilities"), "capabilities"),
    ("security", "katib-mnist", lambda d: trial_pod(d)["containers"][0].pop("securityContext"), "Experiment/mnist"),
    # resources
    ("resources", "pets", lambda d: step(d)["resources"]["requests"].pop("cpu"), "no request of cpu"),
    ("resources", "pets", lambda d: step(d)["resources"].pop("limits"), "no limit of memory"),
    ("resources", "pets", lambda d: member(d)["resources"]["limits"].update(memory="1Gi"), "more memory"),
    # volumes and mount paths
    ("volumes", "pets", lambda d: step(d)["volumeMounts"][0].update(name="other"), "no volume other"),
    ("volumes", "pets", lambda d: step(d)["volumeMounts"][0].update(mountPath="/mnt"), "no volume is mounted there"),
    ("volumes", "pets", lambda d: step(d)["volumeMounts"][0].update(readOnly=True), "mounted read-only"),
    ("volumes", "pets", lambda d: step(d)["volumeMounts"].pop(), "nothing writable at /tmp"),
    ("volumes", "pets", lambda d: find(d, "PersistentVolumeClaim")["metadata"].update(name="disk"), "no claim data"),
    ("volumes", "katib-pets", lambda d: find(d, "Experiment")["spec"]["metricsCollectorSpec"]["source"]
     ["fileSystemPath"].update(path="/events"), "no volume is mounted there"),
    # images and commands
    ("images", "pets", lambda d: step(d).update(image="mlcore/convert:other"), "not in manifests/images"),
    ("images", "pets", lambda d: step(d).pop("imagePullPolicy"), "imagePullPolicy"),
    ("images", "pets", lambda d: step(d).pop("command"), "command None"),
    ("images", "pets", lambda d: step(d)["command"].remove("dumb-init"), "command"),
    ("images", "trainer-mnist", lambda d: find(d, "TrainJob")["spec"]["trainer"].update(image="x"), "TrainJob"),
    # names
    ("names", "pets", lambda d: find(d, "TFJob")["metadata"].update(name="2pets"), "DNS-1035"),
    ("names", "pets", lambda d: find(d, "TFJob")["metadata"].update(name="p" * 53), "more than 63 characters"),
    ("names", "pets", lambda d: find(d, "TFJob")["metadata"].update(namespace="other"), "namespace other"),
    ("names", "trainer-mnist", lambda d: find(d, "ClusterTrainingRuntime")["metadata"].update(namespace="a"), "whole"),
    ("names", "trainer-mnist", lambda d: find(d, "TrainJob")["metadata"].update(name="p" * 60), "more than 63"),
    ("names", "pets", lambda d: d.append(d[0]), "twice"),
    ("annotations", "pets", lambda d: replica(d)["template"]["metadata"].pop("annotations"), "TFJob/pets Worker"),
    ("selectors", "pets", lambda d: find(d, "Service")["spec"].update(selector={"app": "x"}), "selects 0"),
    ("selectors", "pets", lambda d: find(d, "Service")["spec"]["ports"][0].update(targetPort="web"), "no port web"),
    ("selectors", "pets", lambda d: find(d, "Deployment")["spec"]["selector"]["matchLabels"].update(app="x"), "own"),
    ("selectors", "pets", lambda d: replace(find(d, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"],
     "--port=6006", "--port=6007"), "nothing listens"),
    # what launch and deploy may do
    ("access", "access", lambda d: find(d, "RoleBinding")["roleRef"].update(name="x"), "bound to nobody"),
    ("access", "access", lambda d: find(d, "RoleBinding")["subjects"].pop(0), "none of"),
    # flags
    ("arguments", "pets", lambda d: step(d)["args"].append("--no-such=1"), "convert has no --no-such"),
    ("arguments", "pets", lambda d: replace(step(d)["args"], "--target=heads", "--target=tails"), "expected one of"),
    ("arguments", "pets", lambda d: replace(step(d)["args"], "--shards=8", "--shards=many"), "--shards=many"),
    ("arguments", "pets", lambda d: replace(step(d)["args"], "--shards=8", "--shards=-1"), "--shards=-1"),
    ("arguments", "pets", lambda d: replace(step(d)["args"], "--shards=8", "--shards"), "expected --name=value"),
    ("arguments", "pets", lambda d: replace(step(d)["args"], "--shards=8", "--shards=8 "), "without spaces"),
    ("arguments", "pets", lambda d: step(d)["args"].append("--shards=9"), "given 2 times"),
    ("arguments", "pets", lambda d: step(d)["args"].pop(0), "--data-dir is missing"),
    ("arguments", "pets", lambda d: step(d).update(env=[{"name": "MLCORE_SHARD", "value": "8"}]), "MLCORE_SHARD"),
    ("arguments", "pets", lambda d: step(d).update(env=[{"name": "MLCORE_SHARDS", "value": "x"}]), "MLCORE_SHARDS=x"),
    ("arguments", "pets", lambda d: step(d).update(image="mlcore/konvert:latest"), "no step konvert"),
    ("arguments", "pets-gpu-cluster", lambda d: replace(member(d)["args"], "--preset=retinanet-resnet50",
     "--preset=resnet"), "--preset=resnet"),
    ("arguments", "pets", lambda d: replace(step(d, "pets-download")["args"], "--dataset=oxford-pets",
     "--dataset=pets"), "--dataset=pets"),
    ("arguments", "katib-mnist", lambda d: find(d, "Experiment")["spec"]["parameters"][0]["feasibleSpace"].update(
     min="-1"), "--learning-rate=-1"),
    ("arguments", "trainer-mnist", lambda d: find(d, "TrainJob")["spec"]["trainer"]["args"].append("--x=1"), "no --x"),
    # exit codes
    ("exit_codes", "pets", lambda d: rules(d)[2]["onExitCodes"].update(values=[2, 75]), "podFailurePolicy"),
    ("exit_codes", "pets", lambda d: rules(d)[1]["onExitCodes"].update(values=[137]), "podFailurePolicy"),
    ("exit_codes", "pets", lambda d: rules(d)[2]["onExitCodes"].update(operator="NotIn"), "operator NotIn"),
    ("exit_codes", "pets", lambda d: rules(d)[2]["onExitCodes"].update(containerName="main"), "no container main"),
    ("exit_codes", "pets", lambda d: rules(d).pop(0), "podFailurePolicy"),
    ("exit_codes", "pets", lambda d: job(d, "pets-extract").update(restartPolicy="OnFailure"), "restartPolicy"),
    ("exit_codes", "pets", lambda d: step(d).update(name="main"), "no container step"),
    ("exit_codes", "pets", lambda d: find(d, "Job", "pets-extract")["spec"].pop("backoffLimit"), "backoffLimit"),
    ("exit_codes", "pets", lambda d: find(d, "Job", "pets-extract")["spec"].pop("activeDeadlineSeconds"), "Deadline"),
    ("exit_codes", "pets", lambda d: find(d, "Job", "pets-extract")["spec"].pop("ttlSecondsAfterFinished"), "ttl"),
    ("exit_codes", "pets", lambda d: job(d, "pets-extract").update(terminationGracePeriodSeconds=5), "GracePeriod"),
    ("exit_codes", "pets", lambda d: replica(d).update(restartPolicy="OnFailure"), "not ExitCode"),
    ("exit_codes", "pets", lambda d: find(d, "TFJob")["spec"]["runPolicy"].pop("cleanPodPolicy"), "cleanPodPolicy"),
    ("exit_codes", "pets", lambda d: find(d, "TFJob")["spec"]["runPolicy"].pop("activeDeadlineSeconds"), "Deadline"),
    ("exit_codes", "pets", lambda d: find(d, "TFJob")["spec"]["runPolicy"].update(backoffLimit=3), "does not hold"),
    ("exit_codes", "katib-mnist", lambda d: trial(d)["trialSpec"]["spec"]["podFailurePolicy"]["rules"].pop(), "Policy"),
    ("exit_codes", "trainer-runtime", lambda d: d[0]["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
     ["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"].update(values=[143]), "podFailurePolicy"),
    # members of clusters
    ("clusters", "mnist", lambda d: member(d).update(name="step"), "no container tensorflow"),
    ("clusters", "mnist", lambda d: member(d)["ports"][0].update(containerPort=2223), "no port tfjob-port, 2222"),
    ("clusters", "mnist", lambda d: member(d)["args"].append("--seed=2"), "different flags"),
    ("clusters", "mnist", lambda d: member(d).update(image="mlcore/convert:latest"), "takes no part"),
    ("clusters", "mnist", lambda d: find(d, "TFJob")["spec"]["tfReplicaSpecs"].pop("PS"), "strategy"),
    ("clusters", "mnist", lambda d: replica(d, "Chief").update(replicas=2), "2 chiefs"),
    ("clusters", "mnist", lambda d: find(d, "TFJob")["spec"]["tfReplicaSpecs"].update(Boss=replica(d)), "Boss"),
    ("clusters", "trainer-mnist", lambda d: find(d, "TrainJob")["spec"]["trainer"].update(numNodes=3), "too few"),
    ("clusters", "trainer-mnist", lambda d: node(d)["env"].pop(0) and node(d)["env"].pop(0), "roles"),
    # Indexed Jobs
    ("indexed", "pets", lambda d: find(d, "Job", "pets-convert")["spec"].update(completions=3), "3 completions"),
    ("indexed", "pets", lambda d: find(d, "Job", "pets-convert")["spec"].pop("completionMode"), "not Indexed"),
    ("indexed", "pets", lambda d: replace(step(d)["args"], "--shard-count=4", "--shard-count=8"), "--shard-count=8"),
    ("indexed", "pets", lambda d: step(d)["args"].append("--shard-index=0"), "same --shard-index"),
    # who makes what for whom
    ("flow", "pets", lambda d: replace(step(d)["args"], "--data-dir=/data/pets/raw", "--data-dir=/data/r"), "nothing"),
    ("flow", "pets", lambda d: d.remove(find(d, "Job", "pets-extract")), "nothing makes /data/pets/raw"),
    ("flow", "pets", lambda d: job(d, "pets-convert").pop("initContainers"), "waits for nothing"),
    ("flow", "pets", lambda d: wait(d)["args"].__setitem__(1, "/data/pets/download/_SUCCESS.json"), "waits for"),
    ("flow", "mnist", lambda d: wait(d, "mnist-evaluate")["args"].__setitem__(1, "/data/mnist/data/x"), "not wait for"),
    ("flow", "pets", lambda d: predictor(d)["model"].update(storageUri="pvc://data/pets/other"), "nothing exports"),
    ("flow", "pets", lambda d: replace(find(d, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"],
     "--logdir=/data/pets/model", "--logdir=/data/model"), "nothing writes curves"),
    ("flow", "trainer-mnist", lambda d: find(d, "TrainJob")["spec"].pop("runtimePatches"), "waits for /data"),
    ("patience", "pets", lambda d: wait(d)["args"].__setitem__(2, "3600"), "waits 3600 s, has 86400 s"),
    ("patience", "mnist", lambda d: find(d, "TFJob")["spec"]["runPolicy"].update(activeDeadlineSeconds=10**6), "waits"),
    # Katib
    ("katib", "katib-mnist", lambda d: find(d, "Experiment")["spec"]["objective"].update(
     objectiveMetricName="validation/accuracy"), "not among what StdOut finds"),
    ("katib", "katib-pets", lambda d: find(d, "Experiment")["spec"]["objective"].update(
     objectiveMetricName="coco_ap"), "not among what TensorFlowEvent finds"),
    ("katib", "katib-mnist", lambda d: trial(d).update(primaryContainerName="tensorflow"), "primaryContainerName"),
    ("katib", "katib-mnist-tfjob", lambda d: trial(d).pop("primaryPodLabels"), "primaryPodLabels"),
    ("katib", "katib-mnist", lambda d: trial(d)["trialParameters"][0].update(reference="rate"), "refer to"),
    ("katib", "katib-mnist", lambda d: trial(d)["trialParameters"].pop(), "are declared"),
    ("katib", "katib-mnist", lambda d: trial_pod(d)["containers"][0]["args"].append("--x=a b"), "a shell"),
    ("katib", "katib-mnist", lambda d: trial_pod(d)["containers"][0].pop("command"), "no command"),
    ("katib", "katib-mnist", lambda d: trial_pod(d)["securityContext"].pop("runAsUser"), "runAsUser"),
    ("katib", "katib-mnist", lambda d: find(d, "Namespace")["metadata"]["labels"].pop(
     "katib.kubeflow.org/metrics-collector-injection"), "no label"),
    ("katib", "katib-mnist", lambda d: find(d, "Namespace")["metadata"]["labels"].update(
     {"pod-security.kubernetes.io/enforce": "restricted"}), "not allowed"),
    ("katib", "katib-pets", lambda d: replace(trial_pod(d)["containers"][0]["args"], "--model-dir=/train/model",
     "--model-dir=/tmp/model"), "where the collector looks"),
    ("katib", "katib-mnist", lambda d: find(d, "Experiment")["spec"]["parameters"][0]["feasibleSpace"].update(
     min="1"), "not below max"),
    # KServe
    ("arguments", "pets-serve", lambda d: predictor(d)["containers"][0]["args"].append("--x=1"), "serve has no --x"),
    ("volumes", "pets-serve", lambda d: replace(predictor(d)["containers"][0]["args"], "--models-dir=/mnt/models",
     "--models-dir=/models"), "no volume is mounted there"),
    ("kserve", "pets-serve", lambda d: predictor(d)["containers"][0].pop("env"), "no storageUri"),
    ("kserve", "pets-serve", lambda d: predictor(d)["containers"][0]["ports"][0].update(containerPort=8081), "port"),
    ("kserve", "pets", lambda d: predictor(d)["model"].update(runtime="other"), "no runtime other"),
    ("kserve", "pets", lambda d: predictor(d)["model"].update(protocolVersion="v2"), "does not speak v2"),
    ("kserve", "pets", lambda d: predictor(d)["model"].update(modelFormat={"name": "onnx"}), "does not know"),
    ("kserve", "pets", lambda d: predictor(d)["model"].update(storageUri="pvc://disk/pets/exported"), "<claim>"),
    ("kserve", "pets", lambda d: predictor(d)["model"].update(storageUri="pvc://data/pets/exported/1"), "above"),
    ("kserve", "pets-canary", lambda d: predictor(d).update(canaryTrafficPercent=0), "canaryTrafficPercent"),
    ("kserve", "pets", lambda d: replace(find(d, "ServingRuntime")["spec"]["containers"][0]["args"],
     "--rest_api_port=8080", "--rest_api_port=8501"), "--rest_api_port is not 8080"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "overlay", "change", "said"), MUTATIONS, ids=[f"{entry[0]}: {entry[3]}" for entry in MUTATIONS]
)
def test_a_mistake_is_found(check, overlay, change, said):
    documents = copy.deepcopy(with_runtime(overlay))
    change(documents)
    problems = CHECKS[check](documents)
    assert any(said in problem for problem in problems), problems


SCHEMA_MUTATIONS: list[tuple[str, str, Any, str]] = [
    ("Job", "pets", lambda d: find(d, "Job", "pets-convert")["spec"].update(paralelism=4), "paralelism"),
    ("pod of a Job", "pets", lambda d: step(d)["volumeMounts"][0].update(mounthPath="/data"), "mounthPath"),
    ("claim", "pets", lambda d: find(d, "PersistentVolumeClaim")["spec"].update(mode="x"), "mode"),
    ("TFJob", "pets", lambda d: find(d, "TFJob")["spec"].update(cleanPodPolicy="Running"), "cleanPodPolicy"),
    ("restartPolicy", "pets", lambda d: replica(d).update(restartPolicy="Sometimes"), "Sometimes"),
    ("replica", "pets", lambda d: find(d, "TFJob")["spec"]["tfReplicaSpecs"].update(Boss=replica(d)), "Boss"),
    ("InferenceService", "pets", lambda d: predictor(d)["model"].update(storageURI="x"), "storageURI"),
    ("Experiment", "katib-mnist", lambda d: find(d, "Experiment")["spec"].update(maxTrials=3), "maxTrials"),
    ("trial", "katib-mnist", lambda d: trial(d)["trialSpec"]["spec"].update(retries=3), "retries"),
    ("TFJob trial", "katib-mnist-tfjob", lambda d: trial(d)["trialSpec"]["spec"].update(x=3), "'x'"),
    ("TrainJob", "trainer-mnist", lambda d: find(d, "TrainJob")["spec"]["trainer"].update(nodes=3), "nodes"),
    ("runtime", "trainer-mnist", lambda d: node(d).update(imge="x"), "imge"),
]


@pytest.mark.parametrize(
    ("overlay", "change", "said"),
    [entry[1:] for entry in SCHEMA_MUTATIONS],
    ids=[entry[0] for entry in SCHEMA_MUTATIONS],
)
def test_a_field_that_does_not_exist_is_found(overlay, change, said, kubeflow):
    documents = copy.deepcopy(with_runtime(overlay))
    change(documents)
    problems = apis.schemas(documents, kubeflow)
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize("tutorial", ["pets", "mnist"])
def test_all_pods_fit_on_one_machine_beside_each_other(tutorial):
    documents = copy.deepcopy(with_runtime(f"{tutorial}-one-machine"))
    assert pods.fits(documents, 4, 12 * 2**30) == []
    step(documents, f"{tutorial}-evaluate")["resources"]["requests"]["cpu"] = "3"
    assert "cpu" in " ".join(pods.fits(documents, 4, 12 * 2**30))
