"""`mlcore download` against curl: 1 GB over loopback, CPU and wall time of whole processes, alternately.

    python benchmarks/download.py SCRATCH [--megabytes=1000] [--rounds=7]

Ours computes the SHA-256 on the way; curl computes nothing. Bounds: CPU 1.3 times curl's, wall 1.1 times.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from processes import Cost, run, settle

SERVER = """
import os, socket, sys, threading
size = os.path.getsize(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def serve(connection):
    with connection, open(sys.argv[1], "rb") as file:
        request = b""
        while b"\\r\\n\\r\\n" not in request:
            request += connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % size)
        position = 0
        while position < size:
            position += os.sendfile(connection.fileno(), file.fileno(), position, size - position)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    source, output = arguments.scratch / "source.bin", arguments.scratch / "out"
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    with source.open("wb") as file:
        for _ in range(arguments.megabytes):
            file.write(os.urandom(1_000_000))
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(source)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}/source.bin"
    commands = {
        "curl": ["curl", "-sf", "-o", str(output / "source.bin"), url],
        "mlcore": [sys.executable, "-m", "mlcore", "download", f"--url={url}", f"--output-dir={output}"],
    }
    runs: dict[str, list[Cost]] = {name: [] for name in commands}
    try:
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                shutil.rmtree(output, ignore_errors=True)
                output.mkdir()
                settle(output, arguments.megabytes)
                runs[name].append(run(command))
    finally:
        server.terminate()
        source.unlink()
        shutil.rmtree(output, ignore_errors=True)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in runs.items()}
    for name, (cpu, wall, peak) in medians.items():
        print(f"{name:7} cpu {cpu:5.2f} s   wall {wall:5.2f} s   peak {peak:4.0f} MB")
    (cpu, wall, _), (peer_cpu, peer_wall, _) = medians["mlcore"], medians["curl"]
    print(f"ratio   cpu {cpu / peer_cpu:5.2f}     wall {wall / peer_wall:5.2f}")


if __name__ == "__main__":
    main()
