"""TF_CONFIG and ranks -> Cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.cluster.config import Member, cluster_from_environment, parse_tf_config
from mlcore.cluster.ranks import tf_config_from_ranks
from mlcore.cluster.strategy import choose_strategy
from mlcore.runtime.errors import UsageError

GOLDEN = Path(__file__).parent / "golden"


def config(cluster, role="worker", index=0, **more):
    return json.dumps({"cluster": cluster, "task": {"type": role, "index": index}, **more})


def test_tfjob_as_the_operator_sends_it():
    cluster = parse_tf_config((GOLDEN / "tfjob.json").read_text())
    assert (cluster.role, cluster.index, cluster.environment) == ("worker", 1, "cloud")
    assert cluster.me == Member("worker", 1, "myjob-worker-1.kubeflow.svc:2222")
    assert (cluster.me.host, cluster.me.port) == ("myjob-worker-1.kubeflow.svc", 2222)
    assert cluster.chief == Member("chief", 0, "myjob-chief-0.kubeflow.svc:2222")
    assert not cluster.is_chief
    assert [member.address for member in cluster.of("evaluator")] == ["myjob-evaluator-0.kubeflow.svc:2222"]
    assert cluster.strategy == "parameter_server"
    assert cluster.tensorflow_spec() == {
        "chief": {0: "myjob-chief-0.kubeflow.svc:2222"},
        "ps": {0: "myjob-ps-0.kubeflow.svc:2222"},
        "worker": {0: "myjob-worker-0.kubeflow.svc:2222", 1: "myjob-worker-1.kubeflow.svc:2222"},
    }
    assert json.loads(cluster.tf_config())["task"] == {"type": "worker", "index": 1}


def test_dynamic_worker_knows_itself_and_the_parameter_servers():
    cluster = parse_tf_config((GOLDEN / "dynamic-worker.json").read_text())
    assert cluster.sparse
    assert cluster.me == Member("worker", 1, "dyn-worker-1.kubeflow.svc:2222")
    assert cluster.chief is None
    assert cluster.strategy == "parameter_server"
    assert cluster.tensorflow_spec() == {
        "worker": {1: "dyn-worker-1.kubeflow.svc:2222"},
        "ps": {0: "dyn-ps-0.kubeflow.svc:2222"},
    }


def test_dynamic_ps_knows_itself():
    cluster = parse_tf_config((GOLDEN / "dynamic-ps.json").read_text())
    assert cluster.me == Member("ps", 0, "dyn-ps-0.kubeflow.svc:2222")
    second = config({"worker": {}, "ps": ["dyn-ps-1.kubeflow.svc:2222"]}, "ps", 1)
    assert parse_tf_config(second).me == Member("ps", 1, "dyn-ps-1.kubeflow.svc:2222")


@pytest.mark.parametrize("cluster", [{}, {"worker": {}, "ps": []}], ids=["empty", "empty roles"])
def test_chief_of_a_dynamic_job_is_told_what_to_change(cluster):
    with pytest.raises(UsageError, match="enableDynamicWorker: false"):
        parse_tf_config(config(cluster, "chief"))
    assert parse_tf_config(config(cluster, "evaluator")).role == "evaluator"


def test_master_is_the_chief():
    cluster = parse_tf_config(config({"master": ["m:1"], "worker": ["w:1"], "ps": ["p:1"]}, "master"))
    assert (cluster.role, cluster.is_chief) == ("chief", True)
    assert cluster.me == Member("chief", 0, "m:1")


@pytest.mark.parametrize("text", ["", "  ", "{}", '{"cluster": {}}', '{"cluster": {}, "task": {}}'])
def test_no_cluster_is_one_machine(text):
    assert cluster_from_environment({"TF_CONFIG": text}) is None
    assert choose_strategy(None) == "one_machine"


def test_roles_decide_on_the_strategy():
    assert parse_tf_config(config({"worker": ["a:1", "b:1"]})).strategy == "multi_worker_mirrored"
    assert parse_tf_config(config({"chief": ["a:1"], "evaluator": ["b:1"]}, "chief")).strategy == "one_machine"
    cluster = parse_tf_config(config({"worker": ["a:1", "b:1"]}))
    assert cluster.is_chief
    assert choose_strategy(cluster, "one_device") == "one_machine"
    with pytest.raises(UsageError, match="--strategy=parameter_server: expected a cluster with workers and ps"):
        choose_strategy(cluster, "parameter_server")
    with pytest.raises(UsageError, match="at least two workers"):
        choose_strategy(None, "multi_worker_mirrored")


def test_first_worker_leads_where_parameter_servers_have_no_chief():
    roles = {"worker": ["a:1", "b:1", "c:1"], "ps": ["p:1"]}
    first, third = (parse_tf_config(config(roles, "worker", index)) for index in (0, 2))
    assert (first.role, first.index, first.is_chief) == ("chief", 0, True)
    assert (third.role, third.index, third.me.address) == ("worker", 1, "c:1")
    assert first.members == third.members
    assert [member.address for member in first.of("worker")] == ["b:1", "c:1"]


WRONG = {
    "not JSON": ("{", "TF_CONFIG: not JSON"),
    "a list": ("[]", "expected a JSON object"),
    "no task": ('{"cluster": {"worker": ["a:1"]}}', '"task"'),
    "unknown role of the task": (config({"worker": ["a:1"]}, "boss"), "task.type=boss: expected one of chief, worker"),
    "unknown role": (config({"worker": ["a:1"], "boss": ["b:1"]}), "role in cluster=boss"),
    "index too high": (config({"worker": ["a:1", "b:1"]}, "worker", 2), "task is worker 2: expected 0 to 1"),
    "index below 0": (config({"worker": ["a:1"]}, "worker", -1), "task.index=-1"),
    "index is text": (config({"worker": ["a:1"]}, "worker", "one"), "task.index=one"),
    "role not in cluster": (config({"worker": ["a:1"]}, "ps"), "there is no ps in cluster"),
    "no worker": (config({"chief": ["a:1"], "ps": ["b:1"]}, "chief"), "1 ps but no worker"),
    "one worker and no chief": (config({"worker": ["a:1"], "ps": ["b:1"]}), "expected a chief or a second worker"),
    "same address twice": (config({"worker": ["a:1", "a:1"]}), "worker 0 and worker 1 have the same address a:1"),
    "chief and master": (config({"chief": ["a:1"], "master": ["b:1"], "worker": ["c:1"]}), "chief 0 is there twice"),
    "two chiefs": (config({"chief": ["a:1", "b:1"], "worker": ["c:1"]}), "2 chiefs"),
    "no port": (config({"worker": ["a"]}), r"cluster.worker\[0\]=a: expected host:port"),
    "port too high": (config({"worker": ["a:70000"]}), "expected host:port"),
    "a URL": (config({"worker": ["grpc://a:1"]}), "expected host:port"),
    "address not text": (config({"worker": [5]}), "expected host:port"),
    "addresses not a list": (config({"worker": "a:1"}), "expected a list of host:port"),
    "dynamic worker without ps": (config({"worker": {"1": "a:1"}}, "worker", 1), "enableDynamicWorker: false"),
    "sparse index": (config({"worker": {"x": "a:1"}}), "index x"),
    "cluster is a list": (config(["a:1"]), "cluster must be an object"),
    "environment is a number": (config({"worker": ["a:1"]}, environment=5), "environment must be text"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_tf_config_is_named_in_one_line(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_tf_config(text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


hosts = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9-]{0,10}){0,2}", fullmatch=True)
addresses = st.builds(lambda host, port: f"{host}:{port}", hosts, st.integers(1, 65535))


@given(
    everybody=st.lists(addresses, min_size=6, max_size=20, unique=True),
    ps=st.integers(0, 3),
    evaluator=st.booleans(),
    leader=st.sampled_from(["chief", "master"]),
    data=st.data(),
)
def test_every_member_of_any_job_sees_the_same_cluster(everybody, ps, evaluator, leader, data):
    roles = {leader: everybody[:1], "ps": everybody[1 : 1 + ps], "evaluator": everybody[1 + ps : 1 + ps + evaluator]}
    roles["worker"] = everybody[1 + ps + evaluator :]
    tasks = [(role, index) for role, members in roles.items() for index in range(len(members))]
    clusters = [parse_tf_config(config(roles, role, index)) for role, index in tasks]
    assert len({cluster.members for cluster in clusters}) == 1
    assert sum(cluster.is_chief for cluster in clusters) == 1
    for cluster, (role, index) in zip(clusters, tasks, strict=True):
        assert cluster.me.address == roles[role][index]
        assert "evaluator" not in cluster.tensorflow_spec()
    one = data.draw(st.sampled_from(clusters))
    if one.role != "evaluator":
        without = tuple(member for member in one.members if member.role != "evaluator")
        assert parse_tf_config(one.tf_config()).members == without


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | addresses,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cluster", "task", "type", "index", "worker", "ps", "chief", "0", "1"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(json_values | st.builds(lambda c, t: {"cluster": c, "task": t}, json_values, json_values))
def test_any_json_is_a_cluster_or_a_usage_error(value):
    try:
        parse_tf_config(json.dumps(value))
    except UsageError as error:
        assert "\n" not in str(error)


@given(st.text(max_size=50))
def test_any_text_is_a_cluster_or_a_usage_error(text):
    try:
        parse_tf_config(text)
    except UsageError as error:
        assert str(error).startswith("TF_CONFIG: ")


def torch_policy(rank, size="4"):
    return {
        "PET_NNODES": size, "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "myjob-node-0-0.myjob", "PET_MASTER_PORT": "29500", "JOB_COMPLETION_INDEX": str(rank),
    }  # fmt: skip


def test_train_job_with_the_torch_policy():
    cluster = cluster_from_environment(torch_policy(2))
    assert [(member.role, member.index, member.address) for member in cluster.members] == [
        ("chief", 0, "myjob-node-0-0.myjob:2222"),
        ("worker", 0, "myjob-node-0-2.myjob:2222"),
        ("worker", 1, "myjob-node-0-3.myjob:2222"),
        ("ps", 0, "myjob-node-0-1.myjob:2222"),
    ]
    assert (cluster.role, cluster.index) == ("worker", 0)


def test_train_job_with_the_jax_policy():
    environ = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "j-node-0-0.j:6666"}
    cluster = cluster_from_environment(environ)
    assert [member.address for member in cluster.members] == ["j-node-0-0.j:2222", "j-node-0-1.j:2222"]
    assert cluster.strategy == "multi_worker_mirrored"


def test_plain_job_set_and_indexed_job_derive_names_from_their_own():
    environ = {"JOB_COMPLETION_INDEX": "3", "MLCORE_CLUSTER_SIZE": "5", "MLCORE_CLUSTER_EVALUATORS": "1"}
    ranks = tf_config_from_ranks(environ, lambda: "train-node-0-3.train.kubeflow.svc.cluster.local")
    assert ranks["cluster"]["evaluator"] == ["train-node-0-4.train.kubeflow.svc.cluster.local:2222"]
    assert ranks["cluster"]["ps"] == ["train-node-0-1.train.kubeflow.svc.cluster.local:2222"]
    assert ranks["task"] == {"type": "worker", "index": 1}
    ranks = tf_config_from_ranks(
        {**environ, "MLCORE_CLUSTER_HOSTS": "w-{rank}.svc", "MLCORE_CLUSTER_PORT": "3333", "MLCORE_CLUSTER_PS": "2"}
    )
    assert ranks["cluster"] == {
        "chief": ["w-0.svc:3333"], "ps": ["w-1.svc:3333", "w-2.svc:3333"], "worker": ["w-3.svc:3333"],
        "evaluator": ["w-4.svc:3333"],
    }  # fmt: skip
    ranks = tf_config_from_ranks(
        {"MLCORE_CLUSTER_HOSTS": "a,b, c", "MLCORE_CLUSTER_SIZE": "3", "MLCORE_CLUSTER_RANK": "0"}
    )
    assert ranks["cluster"] == {"chief": ["a:2222"], "ps": ["b:2222"], "worker": ["c:2222"]}


@pytest.mark.parametrize(
    "environ", [{}, {"JOB_COMPLETION_INDEX": "2"}, torch_policy(0, "1")], ids=["nothing", "indexed job", "one node"]
)
def test_ranks_without_a_number_of_pods_are_one_machine(environ):
    assert cluster_from_environment(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PET_NNODES": "2"}, "no rank"),
        ({"PET_NNODES": "two"}, "PET_NNODES=two: expected a whole number from 1"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "2"}, "PET_NODE_RANK=2: expected 0 to 1"),
        ({**torch_policy(0, "3"), "MLCORE_CLUSTER_PS": "2"}, "too few"),
        ({**torch_policy(0), "MLCORE_CLUSTER_HOSTS": "a,b"}, "MLCORE_CLUSTER_HOSTS=a,b: expected 4 names"),
        ({**torch_policy(0), "PET_MASTER_ADDR": "10.0.0.1"}, "PET_MASTER_ADDR=10.0.0.1"),
    ],
)
def test_wrong_ranks_are_named(environ, message):
    with pytest.raises(UsageError, match=message):
        cluster_from_environment(environ)


def test_unknown_names_of_the_others_are_said():
    with pytest.raises(UsageError, match="laptop does not tell those of the others"):
        tf_config_from_ranks({"MLCORE_CLUSTER_SIZE": "3", "MLCORE_CLUSTER_RANK": "1"}, lambda: "laptop")


@given(size=st.integers(2, 40), ps=st.integers(0, 5), evaluators=st.integers(0, 1), data=st.data())
def test_ranks_make_one_cluster_for_all(size, ps, evaluators, data):
    rank = data.draw(st.integers(0, size - 1))
    environ = {
        "MLCORE_CLUSTER_SIZE": str(size), "MLCORE_CLUSTER_RANK": str(rank), "MLCORE_CLUSTER_PS": str(ps),
        "MLCORE_CLUSTER_EVALUATORS": str(evaluators), "MLCORE_CLUSTER_HOSTS": "pod-{rank}.svc",
    }  # fmt: skip
    if size - 1 - ps - evaluators < (1 if ps else 0):
        with pytest.raises(UsageError, match="too few"):
            cluster_from_environment(environ)
    else:
        cluster = cluster_from_environment(environ)
        assert len(cluster.members) == size
        assert cluster.me.address == f"pod-{rank}.svc:2222"


def test_reading_tf_config_loads_no_tensorflow():
    code = "import mlcore.cluster.watch, mlcore.cluster.evaluation, sys; print('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
