"""Detection on a cluster with parameter servers against the same training on one machine.

    python benchmarks/cluster_detection.py --data-dir=RECORDS [--rounds=1] [--steps=500] [-- --image-size=192x256 ...]

Both are `mlcore train` with the same flags (those after `--` too); the cluster is a chief, two workers and a parameter
server, all processes of this machine, so that both have the same cores. Printed are the medians of the steps a second
once running, the seconds to the first step, the mean loss of the last 50 steps and AP50 on the val split, and how the
workers shared the steps.
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

ROLES = {"chief": 1, "worker": 2, "ps": 1}


def free_address() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start(folder: str, arguments: argparse.Namespace, tf_config: str = "") -> "subprocess.Popen[str]":
    end = f"={arguments.steps}"
    command = [sys.executable, "-m", "mlcore", "train", f"--data-dir={arguments.data_dir}", f"--model-dir={folder}"]
    command += [f"--steps{end}", f"--eval-interval{end}", f"--checkpoint-interval{end}", *arguments.flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "TF_CONFIG": tf_config}
    )


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One training."""
    with tempfile.TemporaryDirectory() as folder:
        servers = []
        if name == "cluster":
            spec = {role: [free_address() for _ in range(count)] for role, count in ROLES.items()}
            for role, index in [("worker", 0), ("worker", 1), ("ps", 0)]:
                config = json.dumps({"cluster": spec, "task": {"type": role, "index": index}})
                servers.append(start(folder, arguments, config))
            main = start(folder, arguments, json.dumps({"cluster": spec, "task": {"type": "chief", "index": 0}}))
        else:
            main = start(folder, arguments)
        try:
            output = main.communicate()[0]
            if main.returncode:
                raise SystemExit(f"{name} ended with {main.returncode}:\n{output[-2000:]}")
            for server in servers:
                assert server.wait(20) == 0
        finally:
            for server in servers:
                server.kill()
    losses = [float(value) for value in re.findall(r" loss=([\d.]+)$", output, re.M)]
    measured = {
        "steps/s": float(re.findall(r" steps_per_second=([\d.]+)$", output, re.M)[-1]),
        "first step, s": float(re.findall(r"first step done ([\d.]+) s", output)[-1]),
        "loss": statistics.mean(losses[-6:-1]),
        "AP50": float(re.findall(r" ap50=([\d.]+)$", output, re.M)[-1]),
    }
    if shares := re.findall(r"'worker \d+': (\d+)", output):
        measured["share of worker 0"] = int(shares[0]) / sum(map(int, shares))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="records of mlcore convert")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("flags", nargs="*", help="further flags of mlcore train, after --")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"one machine": [], "cluster": []}
    for number in range(arguments.rounds):
        for name, measured in results.items():
            measured.append(measure(name, arguments))
            values = "  ".join(f"{key} {value:.4g}" for key, value in measured[-1].items())
            print(f"round {number + 1}  {name:12} {values}", flush=True)
    one, cluster = (
        {key: statistics.median(run[key] for run in measured) for key in measured[0]} for measured in results.values()
    )
    print(f"{'':20}{'cluster':>12}{'one machine':>14}{'ratio':>8}")
    for key, value in one.items():
        print(f"{key:20}{cluster[key]:12.4g}{value:14.4g}{cluster[key] / value if value else float('nan'):8.2f}")


if __name__ == "__main__":
    main()
