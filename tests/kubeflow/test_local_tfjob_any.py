"""Whatever stands in a manifest: a plan, or one line that says what is wrong; never a traceback."""

import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from mlcore.kubeflow.local.node import Node
from mlcore.kubeflow.local.tfjob import Manifest, parse_tfjob
from mlcore.kubeflow.local_tfjob import plan_all
from mlcore.runtime.errors import UsageError
from tests.kubeflow.jobs import job_object, template

FULL = template(
    command=["sh"], args=["-c", "x"], workingDir="/w", imagePullPolicy="Never",
    env=[{"name": "A", "value": "$(B)"}, {"name": "P", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
         {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "k"}}}],
    envFrom=[{"prefix": "S_", "secretRef": {"name": "token"}}],
    ports=[{"name": "tfjob-port", "containerPort": 2222}],
    resources={"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
    volumeMounts=[{"name": "data", "mountPath": "/data", "subPath": "a/b"}, {"name": "conf", "mountPath": "/conf"}],
    securityContext={"runAsUser": 1, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}},
)  # fmt: skip
FULL["metadata"] = {"labels": {"a": "b"}, "annotations": {"c": "d"}}
FULL["spec"] |= {
    "volumes": [
        {"name": "data", "persistentVolumeClaim": {"claimName": "claim"}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "conf", "configMap": {"name": "settings", "items": [{"key": "k", "path": "p", "mode": 0o600}]}},
    ],
    "initContainers": [{"name": "wait", "image": "i", "command": ["true"]}],
    "securityContext": {"fsGroup": 2, "supplementalGroups": [3], "runAsNonRoot": True},
    "terminationGracePeriodSeconds": 5,
}
JOB = job_object(
    Chief={"replicas": 1, "restartPolicy": "ExitCode", "template": FULL},
    Worker={"replicas": 2, "restartPolicy": "OnFailure", "template": FULL},
    runPolicy={"cleanPodPolicy": "All", "backoffLimit": 1, "activeDeadlineSeconds": 9, "ttlSecondsAfterFinished": 9},
    successPolicy="", enableDynamicWorker=False,
)  # fmt: skip
CONFIG_MAP = {"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"k": "v"}, "binaryData": {"b": "AAA="}}
SECRET = {"kind": "Secret", "metadata": {"name": "token"}, "data": {"k": "AAA="}, "stringData": {"s": "t"}}
DOCUMENTS = {"job": JOB, "config": CONFIG_MAP, "secret": SECRET}


def places(value, path=()):
    """The paths of everything in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*path, key)
        yield from places(each, (*path, key))


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70000), st.floats(), st.text("a$(/.:=é\n-1Gm", max_size=8),
    st.lists(st.one_of(st.none(), st.integers(0, 3), st.text(max_size=3), st.just({})), max_size=2),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 3), st.sampled_from(["name", "key"])),
                    st.one_of(st.none(), st.text(max_size=3), st.integers()), max_size=2),
)  # fmt: skip


def plan(documents):
    files = {("ConfigMap", "settings"): Node(documents["config"]), ("Secret", "token"): Node(documents["secret"])}
    manifest = Manifest(parse_tfjob(Node(documents["job"], source="job.yaml: TFJob")), files)
    return plan_all(manifest, cpus=2, directories={})


def test_the_whole_document_has_a_plan():
    assert len(plan(DOCUMENTS)) == 3


@settings(max_examples=300)
@given(st.sampled_from(list(places(DOCUMENTS))), ODD)
def test_one_odd_value_anywhere(path, value):
    documents = copy.deepcopy(DOCUMENTS)
    place = documents
    for key in path[:-1]:
        place = place[key]
    if path[:-1] == ():  # a whole document: the reader of the file has seen that it is a mapping
        value = value if isinstance(value, dict) else {}
    place[path[-1]] = value
    try:
        plans = plan(documents)
    except UsageError as error:
        assert str(error)
    else:
        for each in plans:
            for container in (*each.init, each.main):
                assert all(isinstance(text, str) for text in (*container.options, *container.arguments))
