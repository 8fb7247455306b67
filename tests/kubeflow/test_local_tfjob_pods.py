"""A pod template becomes options of docker create."""

import base64
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.kubeflow.local.environment import expand
from mlcore.kubeflow.local.node import Node
from mlcore.kubeflow.local.pod_template import plan_pod
from mlcore.kubeflow.local.resources import quantity
from mlcore.runtime.errors import UsageError
from tests.kubeflow.jobs import manifest


def plan(container=None, pod=None, *files, kind="Chief", directories=None):
    made = manifest(container, pod, *files)
    return plan_pod(made, made.job.replica_specs[kind], 0, cpus=4, directories=directories or {})


def options(*arguments, **keywords):
    return plan(*arguments, **keywords).main.options


def env_of(container, *files):
    made = options(container, None, *files)
    pairs = (option.removeprefix("--env=").split("=", 1) for option in made if option.startswith("--env="))
    return dict(pairs)


CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
              "data": {"RATE": "0.1", "run.yaml": "epochs: 3\n"}}  # fmt: skip
SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token"},
          "data": {"KEY": base64.b64encode(b"s3cret").decode()}, "stringData": {"OTHER": "plain"}}  # fmt: skip


def test_names_and_labels_are_the_operators():
    chief = plan(kind="Chief")
    assert chief.name == "myjob-chief-0"
    for label in ("job-name=myjob", "replica-type=chief", "replica-index=0", "job-role=master",
                  "operator-name=tfjob-controller"):  # fmt: skip
        assert f"--label=training.kubeflow.org/{label}" in chief.main.options
    assert "job-role" not in " ".join(options(kind="Worker"))


def test_command_replaces_the_entry_point_and_args_the_command():
    both = plan({"command": ["sh", "-c"], "args": ["echo $(WHO) $$(WHO) $(NOT)"],
                 "env": [{"name": "WHO", "value": "me"}]}).main  # fmt: skip
    assert "--entrypoint=sh" in both.options
    assert both.arguments == ("-c", "echo me $(WHO) $(NOT)")
    only = plan({"args": ["--epochs=3"]}).main
    assert not any(option.startswith("--entrypoint") for option in only.options)
    assert only.arguments == ("--epochs=3",)


def test_variables_refer_to_earlier_ones_and_tf_config_comes_last():
    found = env_of({"env": [
        {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(C)"}, {"name": "C", "value": "3"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "SPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "TYPE", "valueFrom": {"fieldRef": {
            "fieldPath": "metadata.labels['training.kubeflow.org/replica-type']"}}},
        {"name": "TF_CONFIG", "value": "mine"},
    ]})  # fmt: skip
    assert found["B"] == "1$(C)"
    assert (found["POD"], found["SPACE"], found["TYPE"]) == ("myjob-chief-0", "kubeflow", "chief")
    assert found["TF_CONFIG"].startswith('{"cluster"')


def test_variables_come_from_config_maps_and_secrets_of_the_manifest():
    found = env_of(
        {
            "envFrom": [{"prefix": "S_", "configMapRef": {"name": "settings"}}],
            "env": [
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "token", "key": "KEY"}}},
                {"name": "OTHER", "valueFrom": {"secretKeyRef": {"name": "token", "key": "OTHER"}}},
                {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": True}}},
            ],
        },
        CONFIG_MAP,
        SECRET,
    )
    assert (found["S_RATE"], found["KEY"], found["OTHER"]) == ("0.1", "s3cret", "plain")
    assert "NONE" not in found


@given(st.text(st.sampled_from("$()AB x"), max_size=30))
def test_expansion_without_variables_only_halves_dollars(text):
    assert expand(text, {}).replace("$", "") == text.replace("$", "")
    assert expand(text.replace("$", "$$"), {"A": "1", "B": "2"}) == text


def test_security_context_is_kept():
    made = options(
        {"securityContext": {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "runAsUser": 7,
                             "capabilities": {"drop": ["ALL"], "add": ["CAP_NET_RAW"]}}},
        {"securityContext": {"runAsUser": 10001, "runAsGroup": 5, "fsGroup": 6, "supplementalGroups": [8],
                             "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}},
    )  # fmt: skip
    for option in ("--read-only", "--security-opt=no-new-privileges", "--user=7:5", "--group-add=6", "--group-add=8",
                   "--cap-drop=ALL", "--cap-add=NET_RAW"):  # fmt: skip
        assert option in made, option
    assert made.index("--cap-drop=ALL") < made.index("--cap-add=NET_RAW")
    assert plan(pod={"securityContext": {"runAsNonRoot": True}}).main.must_not_be_root
    assert not plan(pod={"securityContext": {"runAsNonRoot": True, "runAsUser": 1}}).main.must_not_be_root


def test_limits_are_kept_and_more_cpus_than_there_are_is_said():
    made = plan({"resources": {"limits": {"cpu": "1500m", "memory": "1.5Gi"}, "requests": {"cpu": "250m"}}})
    assert {"--cpus=1.5", f"--memory={3 << 29}", f"--memory-swap={3 << 29}", "--cpu-shares=256"} <= {*made.main.options}
    big = plan({"resources": {"limits": {"cpu": 64, "nvidia.com/gpu": 2, "ephemeral-storage": "1Gi"}}})
    assert {"--cpus=4", "--gpus=2"} <= {*big.main.options}
    assert big.notes == ("limits of 64 CPUs: this machine has 4", "limits of ephemeral-storage are not kept here")


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), (2, 2), (0.5, Fraction(1, 2)), ("100m", Fraction(1, 10)), ("1Ki", 1024), ("1k", 1000), ("1e3", 1000),
     ("1.5Gi", 3 << 29), ("12E", 12 * 10**18), ("5n", Fraction(5, 10**9)), (".5", Fraction(1, 2))],
)  # fmt: skip
def test_quantities_of_kubernetes(text, value):
    assert quantity(Node(text)) == value


def test_volumes_are_mounted():
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("data", "tmp", "shm", "conf", "sec")]
    mounts += [{"name": "data", "mountPath": "/sub", "subPath": "a/b", "readOnly": True}]
    made = plan(
        {"volumeMounts": mounts},
        {"volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "claim"}}, {"name": "tmp"},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "conf", "configMap": {"name": "settings", "items": [{"key": "run.yaml", "path": "d/run.yaml"}]}},
            {"name": "sec", "secret": {"secretName": "token", "defaultMode": 0o400}},
        ], "securityContext": {"fsGroup": 9}},
        CONFIG_MAP, SECRET,
    )  # fmt: skip
    found = [option for option in made.main.options if option.startswith(("--mount", "--tmpfs"))]
    assert found == [
        "--mount=type=volume,source=kubeflow.claim,target=/data,volume-nocopy",
        "--mount=type=volume,source=myjob-chief-0.tmp,target=/tmp,volume-nocopy",
        "--tmpfs=/shm:rw,exec,mode=1777,size=1048576",
        "--mount=type=volume,source=myjob-chief-0.conf,target=/conf,readonly,volume-nocopy",
        "--mount=type=volume,source=myjob-chief-0.sec,target=/sec,readonly,volume-nocopy",
        "--mount=type=volume,source=kubeflow.claim,target=/sub,readonly,volume-nocopy,volume-subpath=a/b",
    ]
    assert made.claims[0].folders == ("a/b",) and made.claims[0].group == 9
    files = {volume.name: volume.files for volume in made.volumes}
    assert files["myjob-chief-0.conf"] == {"d/run.yaml": (b"epochs: 3\n", 0o644)}
    assert files["myjob-chief-0.sec"] == {"KEY": (b"s3cret", 0o400), "OTHER": (b"plain", 0o400)}


def test_directory_stands_in_for_a_claim_and_for_any_volume(tmp_path):
    mounts = [{"name": "data", "mountPath": "/data", "subPath": "x"}, {"name": "nfs", "mountPath": "/n"}]
    made = options(
        {"volumeMounts": mounts},
        {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "claim"}}, {"name": "nfs", "nfs": {}}]},
        directories={"claim": tmp_path / "c, d", "nfs": tmp_path},
    )
    assert f'--mount=type=bind,"source={tmp_path}/c, d/x",target=/data' in made
    assert (tmp_path / "c, d" / "x").is_dir()
    assert f"--mount=type=bind,source={tmp_path},target=/n" in made


def test_init_containers_come_first_without_tf_config():
    made = plan(None, {"initContainers": [{"name": "wait", "image": "other", "command": ["true"]}]})
    assert [container.name for container in made.init] == ["wait"]
    assert "TF_CONFIG" not in " ".join(made.init[0].options)
    assert "TF_CONFIG" in " ".join(made.main.options)


def test_what_has_no_meaning_here_is_said():
    made = plan({"livenessProbe": {}}, {"nodeSelector": {"gpu": "yes"}, "restartPolicy": "Always"})
    assert made.notes == (
        "nodeSelector has no meaning here",
        "restartPolicy of the template: the operator puts the replica's own, Never",
        "livenessProbe of the container tensorflow is not run here",
    )


CANNOT = {
    "sidecar": (None, {"containers": [{"name": "tensorflow", "image": "i"}, {"name": "proxy", "image": "i"}]},
                "containers[1].name=proxy: a second container beside tensorflow cannot be run here"),
    "host network": (None, {"hostNetwork": True}, "template.spec.hostNetwork: not known to mlcore local-tfjob"),
    "slip in a container": ({"comand": []}, None, "comand: not known to mlcore local-tfjob; did you mean command?"),
    "volume of a kind": (None, {"volumes": [{"name": "n", "nfs": {"server": "s"}}]},
                         "volumes[0]: a volume of the kind nfs is not to be had here"),
    "missing config map": (None, {"volumes": [{"name": "c", "configMap": {"name": "gone"}}]},
                           "configMap.name=gone: no such ConfigMap in the manifest"),
    "missing secret": ({"envFrom": [{"secretRef": {"name": "gone"}}]}, None, "no such Secret in the manifest"),
    "mount of no volume": ({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}, None, "name=x: no such volume"),
    "address of the pod": ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}, None,
                           "fieldPath=status.podIP: not to be had here"),
    "number as a variable": ({"env": [{"name": "A", "value": 1}]}, None, "env[0].value=1: expected text"),
    "root against runAsNonRoot": (None, {"securityContext": {"runAsNonRoot": True, "runAsUser": 0}},
                                  "runAsUser=0: contradicts runAsNonRoot"),
    "quantity": ({"resources": {"limits": {"memory": "2 GB"}}}, None, "limits[memory]=2 GB: expected a quantity"),
    "way out of a volume": ({"volumeMounts": [{"name": "d", "mountPath": "/d", "subPath": "../x"}]},
                            {"volumes": [{"name": "d"}]}, "subPath=../x: expected a path below the volume"),
}  # fmt: skip


@pytest.mark.parametrize(("container", "pod", "words"), CANNOT.values(), ids=CANNOT)
def test_what_cannot_be_had_here_is_refused_by_its_path(container, pod, words):
    with pytest.raises(UsageError) as caught:
        plan(container, pod)
    assert words in str(caught.value)
