"""Two servers on the same weights: `kiloq serve` and llama.cpp's own (xllamacpp), as processes that one can talk to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

THREADS = 2
START_S = 120.0

LLAMA = """
import sys, time, xllamacpp
path, port, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = path
params.hostnames, params.port = ["127.0.0.1"], port
params.n_parallel, params.n_ctx, params.cont_batching = slots, slots * context, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.n_gpu_layers, params.verbosity = 0, -1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
while True:
    time.sleep(3600)
"""


class ServerProcess:
    """A server that runs until `stop`."""

    def __init__(self, command: list[str], url: str | None) -> None:
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE if url is None else subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        if url is None:  # the first line is the address
            assert self._process.stdout is not None
            url = self._process.stdout.readline().strip()
        self.url = url
        end = time.monotonic() + START_S
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command[0]}: the server does not answer at {url}")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def resident_bytes(self) -> int:
        """Memory of the process now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def stop(self) -> int:
        """Asks it to end; its exit code."""
        if self.alive():
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _healthy(self) -> bool:
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kiloq(file: Path | str, *options: str) -> ServerProcess:
    """`kiloq serve` with options."""
    port = free_port()
    command = [sys.executable, "-m", "kiloq", "serve", str(file), "--port", str(port), "--name", "model", *options]
    return ServerProcess(command, f"http://127.0.0.1:{port}")


def llama(file: Path, slots: int, context: int) -> ServerProcess:
    """llama.cpp's server with so many slots of so many tokens."""
    arguments = [str(file), str(free_port()), str(slots), str(context), str(THREADS)]
    return ServerProcess([sys.executable, "-c", LLAMA, *arguments], None)
