"""moto's S3 server in its own process, and a proxy in front of it that fails occasionally."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "farm"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def _process(arguments: list[str], port: int) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | CREDENTIALS,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, f"{arguments} ended"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """moto's server; yields its endpoint with an empty bucket in it."""
    port = free_port()
    with _process(["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port) as endpoint:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        yield endpoint


@contextlib.contextmanager
def flaky_proxy(endpoint: str, every: int, *, port: int | None = None) -> Iterator[str]:
    """Forwards requests, but fails every n-th: alternately it refuses a request, and loses the
    response of a completed one."""
    port = port or free_port()
    arguments = [str(Path(__file__)), str(port), endpoint.rsplit(":", 1)[1], str(every)]
    with _process(arguments, port) as proxy:
        yield proxy


class ForwardingHandler(BaseHTTPRequestHandler):
    """Forwards requests to a server on this machine; subclasses decide which of them fail."""

    protocol_version = "HTTP/1.1"
    upstream_port = 0

    def handle_one(self) -> None:
        """Answer one request."""
        raise NotImplementedError

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's status, headers and body."""
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        return response.status, response.getheaders(), data

    def answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, sent: int | None = None
    ) -> None:
        """Respond; of the body only the first ``sent`` bytes if given."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == "content-length"), str(len(data)))
        is_head = self.command == "HEAD"
        self.send_header("Content-Length", length if is_head else str(len(data)))
        self.end_headers()
        if not is_head:
            self.wfile.write(data[:sent])

    def answer_slow_down(self) -> None:
        """Respond as a store that is too busy."""
        self.answer(503, [], b"<Error><Code>SlowDown</Code></Error>")

    def do_GET(self) -> None:  # noqa: N802
        self.handle_one()

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Proxy(ForwardingHandler):
    every = 0
    numbers = itertools.count(1)

    def handle_one(self) -> None:
        body = self.read_body()
        number = next(self.numbers)
        fails, kind = number % self.every == 0, number // self.every % 2
        if fails and kind == 0:
            self.answer_slow_down()
            return
        status, headers, data = self.forward(body)
        if fails:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.answer(status, headers, data)


if __name__ == "__main__":
    own, _Proxy.upstream_port, _Proxy.every = (int(argument) for argument in sys.argv[1:])
    ThreadingHTTPServer(("127.0.0.1", own), _Proxy).serve_forever()
