"""A proxy in front of an S3 server, in its own process, that fails on command.

Modes: ``well``; ``slow`` delays every request by seconds; ``503`` refuses most requests;
``torn`` cuts uploads and downloads in half and loses responses of completed requests. For a store
that refuses connections, the process is ended and started again on the same port.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from http.server import ThreadingHTTPServer
from pathlib import Path

from support.s3 import ForwardingHandler, free_port

CONTROL = "/-mode/"
FAILING = 0.6
"""Share of requests that fail in the modes ``503`` and ``torn``."""


class StoreProxy:
    """The proxy's process."""

    def __init__(self, endpoint: str) -> None:
        self._upstream = endpoint.rsplit(":", 1)[1]
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Accept connections."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.chaos.store_proxy", str(self.port), self._upstream],
            env=os.environ
            | {"PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"},
        )
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            assert self._process.poll() is None
            time.sleep(0.05)

    def refuse(self) -> None:
        """Refuse connections until ``start``; connections that are open are cut."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def set_mode(self, mode: str) -> None:
        """Fail in this way from now on."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("PUT", CONTROL + mode)
        assert connection.getresponse().status == 200
        connection.close()


class _Handler(ForwardingHandler):
    mode = "well"

    def handle_one(self) -> None:
        if self.path.startswith(CONTROL):
            type(self).mode = self.path.removeprefix(CONTROL)
            self.answer(200, [], b"")
            return
        mode, fails = self.mode, random.random() < FAILING
        if mode == "slow":
            time.sleep(random.uniform(0.5, 3.0))
        length = int(self.headers.get("Content-Length") or 0)
        if mode == "torn" and fails and length and random.random() < 0.5:
            self.rfile.read(length // 2)
            self._cut()
            return
        body = self.read_body()
        if mode == "503" and fails:
            self.answer_slow_down()
            return
        status, headers, data = self.forward(body)
        if mode == "torn" and fails:
            if self.command == "GET" and data:
                self.answer(status, headers, data, sent=len(data) // 2)
            self._cut()
            return
        self.answer(status, headers, data)

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            # the client meets a reset, not an orderly end
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed during a request is expected here."""


if __name__ == "__main__":
    own, _Handler.upstream_port = int(sys.argv[1]), int(sys.argv[2])
    _Server(("127.0.0.1", own), _Handler).serve_forever()
