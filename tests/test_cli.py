"""The command line: where values come from, what errors say, how a step ends."""

import json
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import pytest

from mlcore import cli


@pytest.fixture(autouse=True)
def sample_step(monkeypatch):
    monkeypatch.setitem(cli.STEPS, "sample", "tests.sample_step:sample")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(capsys, *arguments):
    code = cli.main(["sample", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_flags_become_arguments_and_results_lines(capsys):
    code, out, _ = run(
        capsys,
        "--data-dir=d",
        "--batch-size=8",
        "--url=a",
        "--url=b",
        "--overwrite",
        "--overrides=task.x=1",
        "--overrides=task.y=z",
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[0].endswith(" batch_size=8")
    assert "url=['a', 'b']" in out and "overwrite=True" in out and "overrides={'task': {'x': 1, 'y': 'z'}}" in out
    assert lines[-1] == "model=d/model"


def test_flag_wins_over_environment_over_file_over_default(capsys, monkeypatch, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "data_dir: from-file\nbatch-size: 4\nrate: 0.25\ntask: {x: 1, y: 1}\noverrides: {trainer: {z: 2}}\n"
    )
    monkeypatch.setenv("MLCORE_BATCH_SIZE", "5")
    monkeypatch.setenv("MLCORE_URL", "one two")
    monkeypatch.setenv("SAMPLE_HOME", "/h")
    code, out, err = run(capsys, f"--config={config}", "--overrides=task.y=9")
    assert code == 0, err
    assert " batch_size=5\n" in out and " rate=0.250000\n" in out and "model=from-file/model" in out
    assert "url=['one', 'two'] layout=auto overwrite=False home=/h" in out
    assert "'task': {'x': 1, 'y': 9}" in out and "'trainer': {'z': 2}" in out
    assert " batch_size=6\n" in run(capsys, f"--config={config}", "--batch-size=6")[1]


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, "--data-dir must be given"),
        (["--data-dir=d", "--batch-size=many"], {}, "--batch-size=many: expected a whole number at least 1"),
        (["--data-dir=d", "--batch-size=0"], {}, "--batch-size=0: expected a whole number at least 1"),
        (["--data-dir=d"], {"MLCORE_RATE": "2"}, "MLCORE_RATE=2: expected a number from 0 to 1"),
        (["--data-dir=d", "--layout=coco"], {}, "--layout=coco: expected one of auto, voc"),
        (["--data-dir=d", "--bach-size=3"], {}, "--bach-size"),
        (["--data-dir=d", "stray"], {}, "stray"),
        (["--data-dir=d", "--config=missing.yaml"], {}, "--config=missing.yaml: cannot be read"),
        (["--data-dir=d", "--result-file=nonsense=x"], {}, "NAME one of batch_size"),
        (["--data-dir=d", "--log-level=LOUD"], {}, "--log-level=LOUD: expected one of DEBUG"),
    ],
)
def test_wrong_use_is_exit_2_and_one_line(capsys, monkeypatch, arguments, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("mlcore sample: error: ")
    assert words in err


def test_typo_of_a_flag_is_answered_with_the_right_one(capsys):
    assert "--batch-size" in run(capsys, "--data-dir=d", "--bach-size=3")[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize: 3", "unknown key batchsize; did you mean batch_size?"),
        ("batch_size: 3.5", "batch_size=3.5: expected a whole number"),
        ("- 1", "expected name: value"),
        ("a: [", "not YAML"),
        ("batch_size: 3\nseed: 4\nbatch_size: 5", "line 3: batch_size is there twice"),
        ("overrides: {task: {x: 1, x: 2}}", "line 1: x is there twice"),
    ],
)
def test_wrong_config_names_file_and_key(capsys, tmp_path, text, words):
    (tmp_path / "run.yaml").write_text(text)
    code, _, err = run(capsys, "--data-dir=d", f"--config={tmp_path / 'run.yaml'}")
    assert code == 2 and words in err and "run.yaml" in err and err.count("\n") == 1


@pytest.mark.parametrize(("how", "code"), [("data", 65), ("transient", 75), ("bug", 1)])
def test_failure_has_its_exit_code(capsys, how, code):
    got, out, err = run(capsys, "--data-dir=d", f"--fail={how}")
    assert got == code and out == ""
    if how == "data":
        assert err == "mlcore sample: error: d: 3 boxes are bad\n"
    if how == "bug":
        assert "Traceback" in err and "surprise" in err


def test_result_is_written_to_a_file_for_pipelines(capsys, tmp_path):
    target = tmp_path / "outputs" / "data"
    assert run(capsys, "--data-dir=d", f"--result-file=model={target}", f"--result-file=rate={tmp_path / 'r'}")[0] == 0
    assert target.read_text() == "d/model"
    assert float((tmp_path / "r").read_text()) == 0.5


def test_help_explains_every_parameter(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    text = " ".join(out.split())
    assert "Show what arrived." in text and "The second paragraph of its help." in text
    for words in (
        "--data-dir PATH",
        "[required]",
        "[default: 32; at least 1]",
        "auto|voc",
        "--config PATH",
        "MLCORE_BATCH_SIZE",
    ):
        assert words in text, words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_step_with_its_code(number):
    script = textwrap.dedent("""
        from mlcore import cli
        cli.STEPS["sample"] = "tests.sample_step:sample"
        raise SystemExit(cli.main(["sample", "--data-dir=d", "--fail=wait"]))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert err == f"mlcore sample: error: stopped by {number.name}\n"


def test_overview_lists_every_step_with_one_line(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in cli.STEPS:
        assert re.search(rf"^  {name} +[A-Z].{{10,}}\.$", out, re.MULTILINE), name


def test_unknown_step_is_answered_with_the_nearest(capsys):
    assert cli.main(["covert"]) == 2
    assert capsys.readouterr().err == "mlcore: error: no step 'covert'; did you mean convert?\n"
    assert cli.main(["--version"]) == 0


@pytest.mark.parametrize("name", [None, *cli.STEPS])
def test_help_is_quick_and_loads_no_tensorflow(name):
    script = (
        "import sys, time; start = time.process_time()\n"
        "from mlcore.cli import main\n"
        f"assert main({[name] if name else []} + ['--help']) == 0\n"
        "assert 'tensorflow' not in sys.modules, 'loads TensorFlow'\n"
        "print('seconds', time.process_time() - start)\n"
    )
    seconds = []
    for _ in range(10):  # the bound is for one quiet moment: the machine is slower at times
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout.split()[-1]))
        if seconds[-1] < 0.3:
            break
        time.sleep(0.5)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["{base}", "rollback"], {}),
        (["rollback", "--models-dir={base}"], {}),
        (["--action=rollback", "--models-dir={base}"], {}),
        (["{base}"], {"MLCORE_ACTION": "rollback"}),
        (["--action=rollback", "--deadline-s=1"], {"MLCORE_MODELS_DIR": "{base}"}),
    ],
)
def test_a_value_may_stand_alone_where_the_step_says_so(tmp_path, monkeypatch, capsys, arguments, environment):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "saved_model.pb").touch()
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(base=tmp_path))
    code = cli.main(["versions", *(argument.format(base=tmp_path) for argument in arguments)])
    captured = capsys.readouterr()
    if arguments[0] == "rollback":  # the first that stands alone is the directory
        assert code == 2 and "--models-dir" in captured.err
    else:
        assert code == 0 and " serving=1\n" in captured.out, captured.err


def test_help_and_readme_say_which_values_may_stand_alone(capsys, project):
    assert cli.main(["versions", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "mlcore versions [OPTIONS] [MODELS-DIR] [ACTION]" in out and "also without the flag, as MODELS-DIR" in out
    text = (project / "steps" / "versions" / "README.md").read_text()
    assert "The value may stand alone, without the flag, as MODELS-DIR." in text


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["--batch-size=-5"], "at least 1"), (["--rate=-0.5"], "from 0 to 1")]
)
def test_negative_numbers_are_values_and_no_options(capsys, arguments, expected):
    code, _, err = run(capsys, "--data-dir=d", *arguments)
    assert code == 2 and f"{arguments[0]}: expected" in err and expected in err


def test_texts_may_begin_with_a_dash(capsys):
    code, out, _ = run(capsys, "--data-dir=-x", "--url=-y")
    assert code == 0 and "model=-x/model" in out and "url=['-y']" in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a b", "c"]', "['a b', 'c']"), (' ["a"] ', "['a']"), ("a  b", "['a', 'b']"),
        ("[ab]*.jpg c", "['[ab]*.jpg', 'c']"), ("[ab].jpg", "['[ab].jpg']"),
    ],
)  # fmt: skip
def test_lists_in_the_environment_are_words_or_json(capsys, monkeypatch, text, expected):
    monkeypatch.setenv("MLCORE_URL", text)
    assert f"url={expected}" in run(capsys, "--data-dir=d")[1]


def test_a_mapping_in_the_environment_may_be_json(capsys, monkeypatch):
    monkeypatch.setenv("MLCORE_OVERRIDES", '{"task": {"x": 1}}')
    assert "overrides={'task': {'x': 1}}" in run(capsys, "--data-dir=d")[1]


@pytest.mark.parametrize("text", ["batch_size: 2020-13-45", "batch-size: 1\nbatch_size: {a: 1}"])
def test_odd_yaml_is_wrong_use(capsys, tmp_path, text):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    code, _, err = run(capsys, "--data-dir=d", f"--config={config}")
    assert code == 2 and str(config) in err and "bug" not in err


def test_what_the_system_refuses_is_one_line(capsys, tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    (tmp_path / "loop").symlink_to("loop")
    for output, words in (("x" * 300, "File name too long"), ("loop/out", "File exists"), ("a.tar/out", "File exists")):
        assert cli.main(["extract", f"--archive={archive}", f"--output-dir={tmp_path / output}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line and output in line


def test_results_that_cannot_be_written_are_one_line(capsys, tmp_path):
    code, _, err = run(capsys, "--data-dir=d", f"--result-file=model={tmp_path}")
    assert code == 2 and f"{tmp_path}: cannot be used (Is a directory)" in err
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mlcore", "extract", "--archive=a.tar", "--output-dir=out"]
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo("a"))
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                              env={"PYTHONPATH": str(Path.cwd())})  # fmt: skip
    assert done.returncode == 75 and "no room on the disk" in done.stderr and "Traceback" not in done.stderr


def test_errors_are_json_where_logs_are(capsys):
    code, _, err = run(capsys, "--data-dir=d", "--fail=data", "--log-format=json")
    entry = json.loads(err.splitlines()[-1])
    assert code == 65 and entry["level"] == "ERROR" and entry["message"] == "mlcore sample: error: d: 3 boxes are bad"


def test_names_and_numbers_may_stand_between_commas(monkeypatch):
    from mlcore.detection.train import train
    from mlcore.mnist.train import mnist_train

    def parameter(step, name):
        return next(entry for entry in cli.parameters_of(step) if entry.name == name)

    modules, hidden = parameter(train, "init_modules"), parameter(mnist_train, "hidden")
    assert modules.convert_all("backbone,decoder", "") == ("backbone", "decoder")
    assert hidden.convert_all(("256,64", "8"), "") == (256, 64, 8)
    assert hidden.convert_all("[1, 2]", "") == (1, 2)


def test_infinity_is_no_number(capsys):
    code, _, err = run(capsys, "--data-dir=d", "--rate=inf")
    assert code == 2 and "--rate=inf: expected a number from 0 to 1" in err
