"""deploy: InferenceServices on an API server of the tests' own, as KServe moves them."""

import logging
import re

import pytest

from mlcore.kubeflow.cluster import Timing
from mlcore.kubeflow.deploy import Deployment, deploy
from mlcore.kubeflow.inference_service import Model
from mlcore.runtime.errors import DataError, TransientError, UsageError
from tests.kubeflow.api_server import Fault
from tests.kubeflow.operators import KServe, Rollout
from tests.waiting import wait_until, when

QUICK = Timing(
    connect_s=2, answer_s=2, patience_s=1.5, backoff_s=0.05, backoff_max_s=0.2, watch_s=1, outage_s=3, settle_s=0.3,
    rollback_s=2,
)  # fmt: skip
KEY = ("serving.kserve.io/inferenceservices", "team", "pets")
MODEL = Model("pets", "pvc://models/exports/pets")


def run(model=MODEL, percent=100, **options):
    return Deployment(
        "pets", model, percent, **{"namespace": "team", "timeout_s": 10, "timing": QUICK, **options}
    ).run()


def version(number):
    return Model("pets", "pvc://models/exports/pets", version=number)


def predictor(api):
    return api.store.get(KEY)["spec"]["predictor"]


def traffic(api):
    targets = api.store.get(KEY)["status"]["components"]["predictor"]["traffic"]
    return {target["revisionName"][-1]: target["percent"] for target in targets}


@pytest.fixture
def kserve(api, kubeconfig):
    """KServe whose revisions fare as told, one after another."""

    def start(*rollouts, mode="Serverless"):
        return KServe(api, list(rollouts), mode).working()

    return start


@pytest.fixture(autouse=True)
def logs(caplog):
    caplog.set_level(logging.INFO, "mlcore")
    return caplog


def test_new_service_is_created_ready_and_has_an_address(api, kserve):
    with kserve(Rollout(after_s=0.2)):
        result = run()
    assert (result.state, result.url) == ("created", "http://pets.team.example.com")
    assert result.cluster_url == "http://pets.team.svc.cluster.local"
    assert (result.revision, result.canary_percent) == ("pets-predictor-00001", 100)
    assert 0.2 < result.seconds < 5
    assert predictor(api) == {
        "model": {"modelFormat": {"name": "tensorflow"}, "storageUri": "pvc://models/exports/pets"},
    }
    (owner,) = api.store.get(KEY)["metadata"]["managedFields"]
    assert (owner["manager"], owner["operation"]) == ("mlcore", "Apply")


def test_again_is_up_to_date_and_makes_no_revision(api, kserve):
    with kserve() as controller:
        run()
        before = api.store.get(KEY)["metadata"]["resourceVersion"], controller.revisions
        assert run().state == "up to date"
        assert (api.store.get(KEY)["metadata"]["resourceVersion"], controller.revisions) == before


def test_update_waits_for_its_own_revision(api, kserve):
    with kserve(Rollout(), Rollout(after_s=0.5)):
        run()
        result = run(version(2))
    assert (result.state, result.revision) == ("updated", "pets-predictor-00002")
    assert result.seconds > 0.4, "the former revision's readiness was taken for the new one's"
    assert traffic(api) == {"2": 100}


@pytest.mark.slow
def test_canary_is_raised_and_promoted_without_a_new_revision(api, kserve):
    with kserve() as controller:
        run(version(1))
        assert run(version(2), 10).canary_percent == 10
        assert traffic(api) == {"1": 90, "2": 10}
        assert run(version(2), 50).state == "updated"
        assert traffic(api) == {"1": 50, "2": 50}
        assert run(version(2), 50).state == "up to date"
        assert run(None).state == "promoted"
        assert traffic(api) == {"2": 100}
        assert run(None).state == "up to date"
        assert run(version(2)).state == "up to date"
        assert controller.revisions == 2
    assert api.store.get(KEY)["status"]["components"]["predictor"]["latestRolledoutRevision"] == "pets-predictor-00002"


def test_canary_of_100_percent_completes_it_too(api, kserve):
    with kserve():
        run(version(1))
        run(version(2), 0)
        assert traffic(api) == {"1": 100, "2": 0}
        assert run(version(2), 100).revision == "pets-predictor-00002"
    assert traffic(api) == {"2": 100}


def test_canary_of_a_new_service_takes_all_traffic(api, kserve, logs):
    with kserve():
        assert run(percent=10).canary_percent == 100
    assert "canaryTrafficPercent" not in predictor(api)
    assert "nothing else can take the other 90 %" in logs.text


def test_canary_without_knative_is_refused(api, kserve):
    with kserve(mode="Standard"):
        run()
        with pytest.raises(UsageError, match="deployed as Standard, which cannot split traffic"):
            run(version(2), 10)


@pytest.mark.slow
def test_update_without_knative_waits_for_the_new_pods(api, kserve):
    with kserve(Rollout(), Rollout(after_s=0.5), mode="Standard"):
        assert run(version(1)).revision == ""
        result = run(version(2))
    assert result.seconds > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "error"), [(1, DataError), (65, DataError), (75, TransientError)], ids=["bug", "bad-data", "transient"]
)
def test_broken_model_is_rolled_back_to_what_was_served(api, kserve, code, error):
    with kserve(Rollout(), Rollout(failure="ModelLoadFailed", code=code), Rollout()):
        run(version(1))
        former = predictor(api)
        with pytest.raises(error) as raised:
            run(version(2), 20)
    for words in ("BlockedByFailedLoad: ModelLoadFailed: pets-predictor-00002: no version found", f"(exit code {code})",
                  "rolled back to the former spec, which is ready"):  # fmt: skip
        assert words in str(raised.value)
    assert predictor(api) == former
    assert traffic(api) == {"3": 100}


@pytest.mark.slow
def test_spec_that_kserve_refuses_is_rolled_back_though_it_got_no_revision(api, kserve):
    with kserve(Rollout(), Rollout(failure="NoSupportingRuntime", invalid=True)) as controller:
        run(version(1))
        with pytest.raises(DataError, match=r"InvalidSpec: NoSupportingRuntime: .*former spec, which is ready"):
            run(version(2))
        assert run(version(1)).revision == "pets-predictor-00001"
    assert controller.revisions == 2 and traffic(api) == {"1": 100}


@pytest.mark.slow
def test_broken_new_service_is_deleted_again(api, kserve):
    with (
        kserve(Rollout(failure="NoSupportingRuntime")),
        pytest.raises(DataError, match="it was new, and is deleted again"),
    ):
        run()
    assert api.store.get(KEY) is None


@pytest.mark.slow
def test_broken_service_is_left_to_be_looked_at(api, kserve):
    with kserve(Rollout(failure="ModelLoadFailed")), pytest.raises(DataError) as raised:
        run(rollback=False)
    assert "rolled back" not in str(raised.value)
    assert api.store.get(KEY)


@pytest.mark.slow
def test_service_that_is_never_ready_is_transient_and_rolled_back(api, kserve):
    with kserve(Rollout(), Rollout(after_s=60), Rollout()):
        run(version(1))
        with pytest.raises(TransientError, match=r"not ready after 1 s: .*Ready is Unknown.*rolled back to the former"):
            run(version(2), timeout_s=1)


@pytest.mark.slow
def test_rollback_that_fails_too_says_so(api, kserve):
    away = Fault("get", "inferenceservices", status=503, reason="", times=1000)
    with kserve(Rollout(), Rollout(after_s=60)):
        run(version(1))
        when(lambda: api.store.get(KEY)["metadata"]["generation"] == 2, lambda: api.faults.append(away))
        with pytest.raises(TransientError, match=r"not ready after 1 s: .*and could not be rolled back: "):
            run(version(2), timeout_s=1)


def test_fields_of_others_are_kept_and_theirs_are_not_overwritten_unasked(api, kserve):
    with kserve():
        theirs = {
            "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "pets"},
            "spec": {"predictor": {"minReplicas": 2, "model": {
                "modelFormat": {"name": "tensorflow"}, "storageUri": "pvc://other",
                "env": [{"name": "TF_CPP_MIN_LOG_LEVEL", "value": "1"}],
            }}},
        }  # fmt: skip
        api.store.create(KEY, theirs, "kubectl-client-side-apply")
        with pytest.raises(DataError) as raised:
            run()
        for words in (".spec.predictor.model.storageUri", "kubectl-client-side-apply", "--overwrite=true"):
            assert words in str(raised.value)
        assert run(overwrite=True).state == "updated"
    assert predictor(api)["model"]["storageUri"] == "pvc://models/exports/pets"
    assert predictor(api)["minReplicas"] == 2 and predictor(api)["model"]["env"]


def test_what_is_no_longer_asked_for_is_removed(api, kserve):
    with kserve():
        run(Model("pets", "pvc://models/exports/pets", min_replicas=1, cpu="500m", memory="1Gi"))
        assert predictor(api)["model"]["resources"]["limits"] == {"cpu": "500m", "memory": "1Gi"}
        run()
    assert set(predictor(api)) == {"model"} and "resources" not in predictor(api)["model"]


def test_one_version_and_our_own_image(api, kserve):
    with kserve():
        run(Model("pets", "s3://bucket/pets/", version=3, service_account="reader", protocol="grpc-v1", runtime="tfs"))
        assert predictor(api) == {
            "serviceAccountName": "reader",
            "storageUris": [{"uri": "s3://bucket/pets/3", "mountPath": "/mnt/models/3"}],
            "model": {"modelFormat": {"name": "tensorflow"}, "runtime": "tfs", "protocolVersion": "grpc-v1"},
        }
        run(Model("pets", "s3://bucket/pets", image="mlcore/serve", arguments=("--log-level=DEBUG",), gpus=1))
    (container,) = predictor(api)["containers"]
    assert container["args"] == ["--model-name=pets", "--models-dir=/mnt/models", "--log-level=DEBUG"]
    assert container["env"] == [{"name": "STORAGE_URI", "value": "s3://bucket/pets"}]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "model" not in predictor(api) and "storageUris" not in predictor(api)


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        [Fault("patch", drop="after")],
        [Fault("patch", status=409, reason="Conflict", times=2)],
        [Fault("", status=503, reason="", times=3), Fault("watch", drop="before", times=3)],
        [Fault("watch", gone_event=True), Fault("watch", status=410, reason="Expired"), Fault("watch", cut_after=0)],
    ],
    ids=["lost-answer", "optimistic-lock", "away", "410"],
)
def test_faults_of_server_and_network_are_survived(api, kserve, faults):
    with kserve(Rollout(after_s=0.5)):
        api.faults += faults
        assert run().url == "http://pets.team.example.com"
    assert all(fault.times == 0 for fault in api.faults), "the fault was not met"


def test_service_that_someone_deletes_is_transient(api, kserve):
    with kserve(Rollout(after_s=60)):
        when(lambda: api.store.get(KEY), lambda: api.store.delete(KEY))
        with pytest.raises(TransientError, match="was deleted by someone else"):
            run(rollback=False)


def test_missing_permission_and_missing_kserve_are_told_apart(api, kubeconfig):
    api.denied.add(("patch", "inferenceservices"))
    with pytest.raises(UsageError, match=re.escape('resources: ["inferenceservices"], verbs: ["patch"]')):
        run()
    del api.installed["serving.kserve.io/inferenceservices"]
    with pytest.raises(UsageError, match=r"knows no InferenceService .*install KServe"):
        run()


def test_promotion_of_nothing(api, kubeconfig):
    with pytest.raises(UsageError, match="there is no InferenceService pets in namespace team"):
        run(None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "--storage-uri must be given"),
        ({"storage_uri": "/data/exports"}, "--storage-uri=/data/exports: expected such as pvc://"),
        ({"storage_uri": "pvc://c/pets/3"}, "names one version"),
        ({"storage_uri": "pvc://c/pets", "protocol": "v2"}, "--protocol=v2: KServe's TensorFlow runtime speaks v1 and"),
        ({"storage_uri": "pvc://c/pets", "image": "i", "runtime": "r"}, "leave out --runtime"),
        ({"storage_uri": "pvc://c/pets", "memory": "4 GB"}, "--memory=4 GB: expected a quantity"),
        ({"storage_uri": "pvc://c/pets", "min_replicas": 3, "max_replicas": 2}, "more than --max-replicas=2"),
        ({"storage_uri": "pvc://c/pets", "canary_percent": 101}, "expected a whole number from 0 to 100"),
        ({"storage_uri": "pvc://c/pets", "promote": True}, "leave out --storage-uri"),
        ({"storage_uri": "pvc://c/pets", "model_name": "Pets_1"}, "--model-name=Pets_1: expected"),
    ],
)
def test_wrong_values_are_found_before_the_cluster_is_asked(api, kubeconfig, options, words):
    with pytest.raises(UsageError) as raised:
        deploy(**{"model_name": "pets", **options})
    assert words in str(raised.value)
    assert api.requests == []


def test_command_prints_the_address(api, kserve, command):
    with kserve():
        done = command("deploy", "--model-name=pets", "--storage-uri=pvc://models/pets", "--version=4").wait()
    assert done.returncode == 0, done.stderr
    assert "url=http://pets.team.example.com\n" in done.stdout
    assert "state=created\n" in done.stdout and "revision=pets-predictor-00001\n" in done.stdout


@pytest.mark.slow
def test_sigterm_leaves_the_service(api, kserve, command):
    with kserve(Rollout(after_s=60)):
        started = command("deploy", "--model-name=pets", "--storage-uri=pvc://models/pets")
        wait_until(lambda: api.store.get(KEY))
        done = started.stop()
    assert done.returncode == 143
    assert "is left as it is" in done.stderr and "stopped by SIGTERM" in done.stderr
    assert api.store.get(KEY)
