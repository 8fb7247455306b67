"""The images without TensorFlow that speak to a server."""

import pytest

from tests.images.containers import HARDENED, OFFLINE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_predict_without_tensorflow_names_the_extra_for_a_model_on_disk(images, volume):
    mount = f"--volume={volume}:/data"
    images["download"].shell(
        "mkdir -p /data/model/1 /data/out && chown 10001 /data/out && echo x > /data/model/1/saved_model.pb", [mount]
    )
    images["predict-client"].shell(
        "python -c \"from PIL import Image; Image.new('RGB', (8, 8)).save('/data/a.png')\"", [mount]
    )
    result = images["predict-client"].run(
        "--model=/data/model", "--input=/data/a.png", "--output-dir=/data/out/p", options=(*OFFLINE, mount)
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("tensorflow is not installed: pip install 'mlcore[tf]'")


@pytest.mark.parametrize("protocol", ["tfs-grpc", "v1", "v2", "v2-grpc"])
@pytest.mark.parametrize("name", ["verify", "predict-client"])
def test_a_server_that_is_not_there_is_75_and_one_line_of_any_user(images, name, protocol):
    arguments = ["--server=127.0.0.1:1", f"--protocol={protocol}", "--model-name=m"]
    if name == "verify":
        arguments.append("--ready-timeout-s=0.5")
    else:
        arguments += ["--input=/etc/hostname", "--output-dir=/tmp/out", "--deadline-s=0.5"]
    result = images[name].run(*arguments, options=(*OFFLINE, "--user=1000740000:0"))
    assert result.returncode == 75, result.stderr
    assert f"m at 127.0.0.1:1 ({protocol})" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_versions_are_listed_and_chosen_on_a_volume(images, volume):
    mount = f"--volume={volume}:/data"
    images["download"].shell(
        "for n in 1 2 3; do mkdir -p /data/m/$n && echo x > /data/m/$n/saved_model.pb; done; chown -R 10001 /data/m",
        [mount],
    )
    options = (*HARDENED, "--network=none", mount)
    result = images["versions"].run("/data/m", "rollback", "--result-file=serving=/data/m/.serving", options=options)
    assert result.returncode == 0, result.stderr
    assert "versions=[1, 2]" in result.stdout and "retired=[3]" in result.stdout and " serving=2\n" in result.stdout
    listed = images["download"].shell("cat /data/m/.serving; echo; ls -A /data/m /data/m/.retired", [mount])
    assert listed.split() == ["2", "/data/m:", ".retired", ".serving", "1", "2", "/data/m/.retired:", "3"]
