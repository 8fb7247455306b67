"""Every image does what an orchestrator relies on: tried by running it."""

import json
import os
import re
import time

import pytest

from mlcore import __version__
from mlcore.cli import STEPS, load_step
from mlcore.runtime.parameters import parameters_of
from tests.images.containers import OFFLINE, VARIANTS, Image, docker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

UIDS = ("10001:0", "10001:10001", "1000740000:0")  # the image's own, one of no group, one as OpenShift gives

# Looks at every file of the image in one walk; prints what should not be there.
INSPECTION = r"""
import fnmatch, importlib.util, os, pathlib, re, stat, struct

root = os.stat("/").st_dev
(site,) = map(str, pathlib.Path("/opt/mlcore/lib").glob("python3*/site-packages"))
left = ["*/.git", "*/.netrc", "*/pip.conf", "*/.cache/*", "/root/.[!bp]*", "/tmp/?*", "/src", "/run/*.txt",
        "*/bin/pip*", "*/site-packages/pip", "*/site-packages/setuptools", "*/tensorflow/include", "*/id_rsa"]
left = re.compile("|".join(map(fnmatch.translate, left)))
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.lstat(os.path.join(folder, name)).st_dev == root]
    for name in (*folders, *files):
        path = os.path.join(folder, name)
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) and mode & 0o6000:
            print("setuid or setgid:", path)
        # Folders that all may write to have the sticky bit, as /tmp has.
        if mode & 0o002 and not stat.S_ISLNK(mode) and not mode & stat.S_ISVTX:
            print("writable by all:", path)
        if left.match(path):
            print("left over:", path)
        # Templates that are no valid Python cannot be compiled.
        if path.startswith(site) and path.endswith(".py") and "template" not in path:
            try:
                with open(importlib.util.cache_from_source(path), "rb") as file:
                    flags = struct.unpack("<I", file.read(8)[4:])[0]
            except FileNotFoundError:
                flags = None
            if flags != 1:  # an unchecked hash: valid whatever the source's time
                print("without bytecode:", path)
"""

PACKAGES = """
import importlib.metadata
for package in importlib.metadata.distributions():
    print(re.sub("[-_.]+", "-", package.metadata["Name"].lower()), package.version)
""".replace("import importlib", "import re, importlib", 1)


@pytest.fixture(params=[*STEPS, *VARIANTS])
def image(request: pytest.FixtureRequest, images: dict[str, Image]) -> Image:
    """Each image in turn."""
    return images[request.param]


@pytest.fixture
def waiting(image: Image, container: str, pipe: str) -> str:
    """A container whose step is running and does not end."""
    docker("run", "--detach", f"--name={container}", *OFFLINE, f"--volume={pipe}:/data:ro", image.reference,
           "--config=/data/pipe")  # fmt: skip
    time.sleep(1)
    return container


def state(container: str, field: str) -> str:
    return docker("inspect", f"--format={{{{.State.{field}}}}}", container).stdout.strip()


@pytest.mark.parametrize("user", UIDS)
def test_help_as_any_user_without_privileges_or_network(image, user):
    shown = image.run("--help", options=(*OFFLINE, f"--user={user}"))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"Usage: mlcore {image.step} ")


def test_version(image):
    shown = image.run("mlcore", "--version", options=(*OFFLINE, "--entrypoint=dumb-init"))
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"mlcore {__version__}\n", "")
    if all(parameter.name != "version" for parameter in parameters_of(load_step(image.step))):
        shown = image.run("--version")
        assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"mlcore {__version__}\n", "")


def test_help_costs_at_most_600_ms(image):
    # CPU time of the step's process, so that a busy machine does not count.
    times = docker("run", "--rm", *OFFLINE, "--entrypoint=sh", image.reference, "-c",
                   "python /opt/step --help >/dev/null; times").stdout.splitlines()[1]  # fmt: skip
    assert (
        sum(60 * float(minutes) + float(seconds) for minutes, seconds in re.findall(r"(\d+)m([\d.]+)s", times)) <= 0.6
    )


def test_wrong_use_is_2_and_one_line_on_stderr(image):
    result = image.run("--no-such-flag=1")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and "--no-such-flag" in result.stderr


@pytest.mark.skipif(os.cpu_count() == 1, reason="a share of one core is all there is")
@pytest.mark.parametrize(("limit", "expected"), [(["--cpus=1"], "1 1"), ([], f"{os.cpu_count()} None")])
def test_a_share_of_the_cores_is_threads_for_that_share(images, limit, expected):
    code = (
        "import os; from mlcore.runtime.cores import usable_cores; from mlcore.cluster.tensorflow import "
        "import_tensorflow as get; get(keras=False); print(usable_cores(), os.environ.get('TF_NUM_INTRAOP_THREADS'))"
    )
    assert images["mnist-train"].shell(f'python -c "{code}"', limit).strip() == expected


def test_sigterm_ends_it_with_143_and_orphans_leave_no_zombie(waiting):
    docker("exec", waiting, "sh", "-c", "(sleep 0.1 &) ; (sleep 0.1 &)")
    time.sleep(0.5)
    states = docker("exec", waiting, "sh", "-c", "cat /proc/[0-9]*/stat", check=False).stdout
    assert "(python)" in states
    assert "(sleep)" not in states
    started = time.monotonic()
    docker("kill", "--signal=TERM", waiting)
    docker("wait", waiting)
    assert time.monotonic() - started < 10
    assert state(waiting, "ExitCode") == "143"
    assert "stopped by SIGTERM" in docker("logs", waiting).stderr


def test_sigterm_right_after_the_start_ends_it_with_143(image, container, pipe):
    docker("create", f"--name={container}", *OFFLINE, f"--volume={pipe}:/data:ro", image.reference,
           "--config=/data/pipe")  # fmt: skip
    docker("start", container)
    docker("kill", "--signal=TERM", container)
    docker("wait", container, timeout=10)
    assert state(container, "ExitCode") == "143"


def test_runs_as_a_numeric_user_with_labels_and_one_entry_point(image):
    (details,) = json.loads(docker("image", "inspect", image.reference).stdout)
    config = details["Config"]
    assert config["User"] == "10001:0"
    assert config["Entrypoint"] == ["dumb-init", "--single-child", "--", "python", "/opt/step"]
    assert config["WorkingDir"] == "/data"
    assert config["Labels"]["org.opencontainers.image.title"] == f"mlcore {image.name}"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    history = docker("history", "--no-trunc", image.reference).stdout
    assert not re.search(r"TOKEN|PASSWORD|SECRET|INDEX|://", "\n".join([*config["Env"], history]))


def test_holds_no_setuid_or_world_writable_file_no_leftovers_and_all_bytecode(image):
    options = ("--network=none", "--user=0:0", "--entrypoint=python")
    found = image.run("-c", INSPECTION, options=options)
    assert (found.returncode, found.stdout) == (0, "")


def test_each_package_is_the_locked_one_and_nothing_else(image, project):
    listed = image.run("-c", PACKAGES, options=("--network=none", "--entrypoint=python")).stdout.splitlines()
    locked = "\n" + (project / "docker" / "requirements" / f"{image.flavour}.txt").read_text()
    assert f"mlcore {__version__}" in listed
    for line in listed:
        name, version = line.split()
        assert name == "mlcore" or f"\n{name}=={version} " in locked, line
