"""TF_CONFIG of local-tfjob is the operator's, byte for byte, and our own cluster code reads it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.cluster.config import parse_tf_config
from mlcore.kubeflow.local.tf_config import tf_config
from tests.kubeflow.jobs import job, template


@pytest.fixture
def golden(project):
    return lambda name: (project / "tests" / "cluster" / "golden" / f"{name}.json").read_text().strip()


def test_worker_of_a_full_job(golden):
    full = job(Worker=2, PS=1, Evaluator=1, Chief=1)
    assert tf_config(full, "Worker", 1) == golden("tfjob")


def test_dynamic_workers(golden):
    dynamic = job(name="dyn", PS=1, Worker=2, enableDynamicWorker=True)
    assert tf_config(dynamic, "Worker", 1) == golden("dynamic-worker")
    assert tf_config(dynamic, "PS", 0) == golden("dynamic-ps")


def test_dynamic_parameter_server_lists_only_itself():
    dynamic = job(name="dyn", PS=2, Worker=2, enableDynamicWorker=True)
    assert tf_config(dynamic, "PS", 1) == (
        '{"cluster":{"worker":{},"ps":["dyn-ps-1.kubeflow.svc:2222"]},"task":{"type":"ps","index":1}}'
    )


@pytest.mark.parametrize("kind", ["Chief", "Evaluator"])
def test_dynamic_job_tells_the_others_nothing(kind):
    dynamic = job(PS=1, Worker=1, enableDynamicWorker=True, **{kind: 1})
    role = kind.lower()
    assert tf_config(dynamic, kind, 0) == ('{"cluster":{"worker":{},"ps":[]},"task":{"type":"' + role + '","index":0}}')


def test_dynamic_worker_without_parameter_servers():
    dynamic = job(name="dyn", Worker=2, enableDynamicWorker=True)
    assert tf_config(dynamic, "Worker", 0) == (
        '{"cluster":{"worker":{"0":"dyn-worker-0.kubeflow.svc:2222"},"ps":null},"task":{"type":"worker","index":0}}'
    )


@pytest.mark.parametrize("kind", ["Chief", "Worker"])
def test_job_of_one_replica_gets_none(kind):
    assert tf_config(job(**{kind: 1}), kind, 0) is None


def test_port_and_master_are_named():
    ports = [{"name": "tfjob-port", "containerPort": 3333}]
    small = job(Master=1, Worker={"template": template(ports=ports)})
    assert tf_config(small, "Master", 0) == (
        '{"cluster":{"master":["myjob-master-0.kubeflow.svc:2222"],"worker":["myjob-worker-0.kubeflow.svc:3333"]},'
        '"task":{"type":"master","index":0},"environment":"cloud"}'
    )


@given(workers=st.integers(1, 12), servers=st.integers(0, 4), evaluator=st.booleans(), leader=st.booleans())
def test_our_cluster_code_finds_every_replica_in_it(workers, servers, evaluator, leader):
    kinds = {"Worker": workers, "PS": servers, "Evaluator": int(evaluator), "Chief": int(leader)}
    if servers and not leader and workers < 2:
        return  # refused by our cluster code: nobody would train
    described = job(**{kind: count for kind, count in kinds.items() if count})
    if described.total == 1:
        return
    for spec in described.replica_specs.values():
        for index in range(spec.replicas):
            cluster = parse_tf_config(tf_config(described, spec.type, index))
            assert len(cluster.members) == described.total
            if spec.type != "Evaluator":
                assert cluster.me.address == f"{described.host_name(spec.type, index)}:2222"
