"""`mlcore local-tfjob` with real containers: each rule of the operator on a tiny job."""

import re
import signal
import subprocess
import sys
import time
import uuid

import pytest

from tests.images.containers import docker
from tests.images.local_job import LocalJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NONE = (set(), set(), False)


@pytest.fixture
def tiny(images, tmp_path):
    """Makes jobs whose replicas are Python scripts in the image of a step that has no TensorFlow."""
    jobs = []

    def replica(script, policy="ExitCode", count=1, **pod):
        container = {
            "name": "tensorflow", "image": images["download"].reference, "command": ["python", "-u", "-c"],
            "args": [script], "imagePullPolicy": "Never", **pod.pop("container", {}),
        }  # fmt: skip
        spec = {"terminationGracePeriodSeconds": 5, "containers": [container], **pod}
        return {"replicas": count, "restartPolicy": policy, "template": {"spec": spec}}

    def make(specs, *documents, success="", dynamic=False, **policy):
        name = f"t{uuid.uuid4().hex[:10]}"
        replicas = {kind: replica(spec) if isinstance(spec, str) else replica(*spec[:-1], **spec[-1])
                    for kind, spec in specs.items()}  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        job = LocalJob(folder, {
            "apiVersion": "kubeflow.org/v1", "kind": "TFJob", "metadata": {"name": name, "namespace": "test"},
            "spec": {"runPolicy": policy, "successPolicy": success, "enableDynamicWorker": dynamic,
                     "tfReplicaSpecs": replicas},
        }, *documents)  # fmt: skip
        jobs.append(job)
        return job

    yield make
    for job in jobs:
        job.close()


# Ends with 138 the first time, as far as a directory that outlives the container tells, and looks for traces of itself
# in what does not.
ONCE_138 = """
import os, sys
from pathlib import Path
times = Path("/count/" + os.uname().nodename)
first = not times.exists()
times.touch()
print("first" if first else "again", sorted(os.listdir("/empty")), Path("/var/tmp/mark").exists())
Path("/empty/mark").touch(); Path("/var/tmp/mark").touch()
sys.exit({code} if first else 0)
"""
# Waits for the chief by its DNS name and port.
CALL_CHIEF = """
import json, os, socket, time
host, port = json.loads(os.environ["TF_CONFIG"])["cluster"]["chief"][0].split(":")
end = time.monotonic() + 30
while True:
    try:
        print("heard", socket.create_connection((host, int(port)), 2).recv(9).decode(), "from", host)
        break
    except OSError:
        assert time.monotonic() < end
        time.sleep(0.2)
"""
BE_CALLED = """
import socket
server = socket.create_server(("", 2222))
for _ in range(2):
    connection = server.accept()[0]
    connection.sendall(b"hello")
    connection.close()
print("called twice")
"""
POLITE = """
import signal, sys, time
def leave(*_):
    print("leaving")
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("waiting")
time.sleep(600)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('waiting'); time.sleep(600)"


@pytest.fixture
def counting(tmp_path):
    """What a pod has whose script counts its runs."""
    folder = tmp_path / "count"
    folder.mkdir()
    folder.chmod(0o777)
    names = ("count", "empty")
    pod = {
        "container": {"volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in names]},
        "volumes": [{"name": "count", "persistentVolumeClaim": {"claimName": "count"}}, {"name": "empty"}],
    }
    return pod, f"--volume=count={folder}"


def test_replicas_find_each_other_by_the_operators_names(tiny):
    job = tiny({"Chief": BE_CALLED, "Worker": (CALL_CHIEF, "ExitCode", 2, {})}, cleanPodPolicy="All")
    assert job.run() == 0, job.tail()
    for name in ("worker-0", "worker-1"):
        line = rf"^{job.name}-{name} +\| heard hello from {job.name}-chief-0\.test\.svc$"
        assert re.search(line, job.stdout, re.MULTILINE), job.stdout
    assert job.table()[f"{job.name}-chief-0"] == ("Succeeded", "0", 0)
    assert re.search(r"^state=Succeeded$", job.stdout, re.MULTILINE)
    assert job.left() == NONE


def test_exit_code_from_128_makes_the_pod_anew(tiny, counting):
    pod, volume = counting
    job = tiny({"Chief": (ONCE_138.format(code=138), "ExitCode", 1, pod), "PS": POLITE}, cleanPodPolicy="All")
    assert job.run(volume) == 0, job.tail()
    assert re.findall(r"\| (first|again) (.*)$", job.stdout, re.MULTILINE) == [
        ("first", "[] False"),
        ("again", "[] False"),
    ]
    assert job.table()[f"{job.name}-chief-0"] == ("Succeeded", "0", 1)
    assert "ended with 138; deleted and made again" in job.stderr
    assert job.left() == NONE


def test_on_failure_restarts_the_container_in_its_pod(tiny, counting):
    pod, volume = counting
    job = tiny({"Worker": (ONCE_138.format(code=3), "OnFailure", 1, pod)}, cleanPodPolicy="All")
    assert job.run(volume) == 0, job.tail()
    # The emptyDir is the pod's; the container's own files are gone.
    assert re.findall(r"\| (again .*)$", job.stdout, re.MULTILINE) == ["again ['mark'] False"]
    assert job.table()[f"{job.name}-worker-0"] == ("Succeeded", "0", 1)


def test_exit_code_below_128_fails_the_job(tiny):
    job = tiny({"Chief": POLITE, "Worker": "raise SystemExit(65)"}, cleanPodPolicy="Running")
    assert job.run() == 65, job.tail()
    assert job.stderr.endswith(
        f"mlcore local-tfjob: error: TFJob test/{job.name} has failed: 1 Worker replica(s) failed: "
        f"{job.name}-worker-0 ended with 65\n"
    )
    assert job.table()[f"{job.name}-worker-0"] == ("Failed", "65", 0)
    assert job.table()[f"{job.name}-chief-0"][0] == "Deleted"
    assert job.containers() == {f"{job.name}-worker-0"}  # completed pods stay under Running
    assert docker("logs", f"{job.name}-worker-0").returncode == 0


def test_pods_keep_running_under_the_policy_none_until_the_job_is_replaced(tiny):
    job = tiny({"Chief": "import time; time.sleep(2)", "PS": POLITE})
    assert job.run() == 0, job.tail()
    ps = f"{job.name}-ps-0"
    assert job.containers(running=True) == {ps}
    assert re.search(rf"WARNING .*cleanPodPolicy None: {ps} keeps running", job.stderr)
    assert job.table()[ps] == ("Running", "-", 0)
    assert job.run() == 2
    assert job.stderr == (
        f"mlcore local-tfjob: error: TFJob test/{job.name} is here already: {ps} is running; --overwrite=true "
        "replaces it\n"
    )
    assert job.containers(running=True) == {ps}
    assert job.run("--overwrite=true", "--remove=true") == 0, job.tail()
    assert job.left() == NONE


def test_ttl_ends_what_the_policy_none_keeps(tiny):
    job = tiny({"Chief": "pass", "PS": POLITE}, ttlSecondsAfterFinished=2)
    assert job.run() == 0, job.tail()
    assert re.search(r"-ps-0 +\| leaving", job.stdout)
    assert job.left() == NONE


def test_all_workers_have_to_complete_where_the_policy_says_so(tiny):
    script = "import os, time; time.sleep(3 * int(os.uname().nodename[-1])); print('done')"
    job = tiny({"Worker": (script, "Never", 2, {})}, success="AllWorkers")
    assert job.run("--remove") == 0, job.tail()
    assert {state for state, _, _ in job.table().values()} == {"Succeeded"}
    assert job.stdout.count("| done") == 2


def test_deadline_is_exit_75_and_nothing_stays(tiny):
    job = tiny({"Chief": POLITE, "Worker": POLITE}, activeDeadlineSeconds=3)
    assert job.run() == 75, job.tail()
    assert "was active longer than activeDeadlineSeconds (3)" in job.stderr
    assert job.left() == NONE


def test_backoff_limit_ends_restarts_in_place(tiny):
    job = tiny({"Chief": POLITE, "Worker": ("raise SystemExit(1)", "OnFailure", 1, {})}, backoffLimit=1)
    assert job.run() == 65, job.tail()
    assert "it has reached backoffLimit (1)" in job.stderr
    assert job.left() == NONE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_every_container_in_its_own_time(tiny, number):
    job = tiny({"Chief": POLITE, "Worker": (POLITE, "ExitCode", 2, {})}).start()
    job.wait_for(r"(waiting.*){3}")
    started = time.monotonic()
    job.process.send_signal(number)
    assert job.wait(60) == 128 + number, job.tail()
    assert time.monotonic() - started < 20
    assert job.stdout.count("| leaving") == 3
    assert {row[:2] for row in job.table().values()} == {("Deleted", "143")}
    assert job.stderr.endswith(f"mlcore local-tfjob: error: stopped by {number.name}\n")
    assert job.left() == NONE


def test_second_interrupt_kills_what_does_not_want_to_end(tiny):
    job = tiny({"Chief": (STUBBORN, "ExitCode", 1, {"terminationGracePeriodSeconds": 600})}).start()
    job.wait_for("waiting")
    job.process.send_signal(signal.SIGINT)
    job.wait_for("stopping")
    time.sleep(1)
    job.process.send_signal(signal.SIGINT)
    assert job.wait(30) == 130, job.tail()
    assert job.left() == NONE


def test_killed_container_and_removed_one_are_made_again(tiny):
    job = tiny({"Chief": POLITE, "Worker": POLITE}).start()
    worker = f"{job.name}-worker-0"
    job.wait_for(rf"{worker} +\| waiting")
    docker("kill", "--signal=KILL", worker)
    job.wait_for(rf"{worker}: ended with 137; deleted and made again.*")
    job.wait_for(rf"({worker} +\| waiting.*){{2}}")
    docker("rm", "--force", worker)
    job.wait_for(rf"{worker}: was removed; deleted and made again")
    job.wait_for(rf"({worker} +\| waiting.*){{3}}")
    docker("kill", "--signal=KILL", f"{job.name}-chief-0")
    job.wait_for(r"chief-0: ended with 137")
    job.process.send_signal(signal.SIGTERM)
    assert job.wait(60) == 143, job.tail()
    assert job.table()[worker][2] == 2


def test_reader_that_goes_away_does_not_hold_up_the_job(tiny):
    script = "for n in range(20000): print('line', n)\nprint('x' * 100)"
    job = tiny({"Chief": script}, cleanPodPolicy="All")
    command = [sys.executable, "-m", "mlcore", "local-tfjob", str(job.manifest)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"| line" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE, process.stderr.read()
    process.stderr.close()
    assert job.left() == NONE


def test_killed_tool_leaves_what_its_next_run_removes(tiny):
    job = tiny({"Chief": "import time; time.sleep(3)", "PS": POLITE}, cleanPodPolicy="All").start()
    job.wait_for("waiting")
    second = subprocess.run([sys.executable, "-m", "mlcore", "local-tfjob", str(job.manifest), "--overwrite"],
                            capture_output=True, text=True)  # fmt: skip
    assert second.returncode == 2 and "is run by another mlcore local-tfjob; stop that first" in second.stderr
    job.process.kill()
    job.process.wait()
    assert job.containers(running=True)
    assert job.run("--overwrite") == 0, job.tail()
    assert "removing what an earlier run left" in job.stderr
    assert job.left() == NONE


def test_pod_has_its_init_containers_files_user_and_limits(tiny, images):
    script = """
import os
from pathlib import Path
print("user", os.getuid(), sorted(os.getgroups()), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists())
print("init said", Path("/work/said").read_text(), oct(os.stat("/work").st_mode))
print("file", Path("/conf/run.yaml").read_text(), Path("/secret/KEY").read_text(), oct(os.stat("/secret/KEY").st_mode))
print("env", os.environ["RATE"], os.environ["POD"], "TF_CONFIG" in os.environ)
for path in ("/etc/x", "/conf/x", "/claim/x", "/shm/x"):
    try:
        Path(path).touch()
        print("wrote", path)
    except OSError as error:
        print("refused", path)
"""
    wait = {"name": "wait", "image": images["download"].reference, "command": ["sh", "-c"],
            "args": ['printf "$POD" > /work/said'], "volumeMounts": [{"name": "work", "mountPath": "/work"}],
            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}  # fmt: skip
    job = tiny(
        {"Worker": (script, "Never", 1, {
            "securityContext": {"runAsUser": 1234, "runAsGroup": 99, "fsGroup": 77, "runAsNonRoot": True},
            "initContainers": [wait],
            "container": {
                "securityContext": {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
                                    "allowPrivilegeEscalation": False},
                "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
                "env": [wait["env"][0]], "envFrom": [{"configMapRef": {"name": "settings"}}],
                "volumeMounts": [{"name": name, "mountPath": f"/{name}"}
                                 for name in ("work", "conf", "secret", "claim", "shm")],
            },
            "volumes": [
                {"name": "work", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}},
                {"name": "conf", "configMap": {"name": "settings"}},
                {"name": "secret", "secret": {"secretName": "token", "defaultMode": 0o400}},
                {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
            ],
        })},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
         "data": {"run.yaml": "epochs=3", "RATE": "0.5"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token"}, "stringData": {"KEY": "s3cret"}},
    )  # fmt: skip
    claim = f"c{job.name}"
    job.manifest.write_text(job.manifest.read_text().replace("claimName: c\n", f"claimName: {claim}\n"))
    assert job.start().wait() == 0, job.tail()
    try:
        state = docker("inspect", "--format={{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.MemorySwap}}",
                       f"{job.name}-worker-0").stdout.split()  # fmt: skip
    finally:
        docker("rm", "--force", f"{job.name}-worker-0")
        docker("volume", "rm", f"test.{claim}")
    assert state == ["500000000", str(64 << 20), str(64 << 20)]
    said = re.findall(r"\| (.*)$", job.stdout, re.MULTILINE)
    assert said[0].startswith("user 1234 [77, 99]")
    assert said[1:4] == [
        f"init said {job.name}-worker-0 0o42777", "file epochs=3 s3cret 0o100440",
        f"env 0.5 {job.name}-worker-0 False",
    ]  # fmt: skip
    assert said[4:] == ["refused /etc/x", "refused /conf/x", "wrote /claim/x", "wrote /shm/x"]


def test_command_that_is_not_there_is_said_and_counts_as_128(tiny):
    job = tiny({"Worker": ("", "Never", 1, {"container": {"command": ["/no/such/command"]}})})
    assert job.run("--remove") == 65, job.tail()
    assert "/no/such/command" in job.stderr and "ended with 128" in job.stderr
    assert job.left() == NONE


def test_container_out_of_memory_is_told(tiny):
    pod = {"container": {"resources": {"limits": {"memory": "32Mi"}}}}
    job = tiny({"Worker": ("x = b'1' * (200 << 20)", "Never", 1, pod)})
    assert job.run("--remove") == 65, job.tail()
    assert "ended with 137" in job.stderr and "out of memory" in job.stderr


def test_init_container_that_fails_fails_the_job(tiny, images):
    first = {"name": "wait", "image": images["download"].reference, "command": ["sh", "-c", "echo no; exit 75"]}
    job = tiny({"Worker": ("print('never')", "Never", 1, {"initContainers": [first]})})
    assert job.run("--remove") == 65, job.tail()
    assert "never ran" in job.stderr and "| no" in job.stdout and "| never" not in job.stdout
    assert job.left() == NONE


def test_image_that_is_nowhere_is_exit_2_and_names_its_field(tiny):
    job = tiny({"Worker": ("", "Never", 1, {"container": {"image": "mlcore/no-such-step:test"}})})
    assert job.run() == 2
    assert "template.spec.containers[0].image=mlcore/no-such-step:test: not on this machine" in job.stderr
    assert job.stderr.count("\n") == 1 and job.left() == NONE


def test_option_that_the_engine_refuses_ends_the_job_without_leftovers(tiny):
    job = tiny({"Chief": POLITE, "Worker": ("", "Never", 1, {"container": {"workingDir": "not/absolute"}})})
    assert job.run() == 2, job.tail()
    assert "not/absolute" in job.stderr.splitlines()[-1]
    assert job.left() == NONE
