"""A metadata server like those of AWS, GCP and Azure, for preemption notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NEEDS = {
    "/latest/api/token": ("X-aws-ec2-metadata-token-ttl-seconds", "21600"),
    "/latest/meta-data": ("X-aws-ec2-metadata-token", "a-token"),
    "/computeMetadata": ("Metadata-Flavor", "Google"),
    "/metadata": ("Metadata", "true"),
}
"""Header that each cloud requires, by path."""


@dataclass
class MetadataServer:
    """A running server; change ``answers`` to publish a notice."""

    endpoint: str
    answers: dict[str, str] = field(default_factory=lambda: {"/latest/api/token": "a-token"})


@contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            path = self.path.partition("?")[0]
            for prefix, (header, value) in NEEDS.items():
                if path.startswith(prefix) and self.headers.get(header) != value:
                    self.send_error(401)
                    return
            if (body := facts.answers.get(path)) is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    facts = MetadataServer(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield facts
    finally:
        server.shutdown()
        server.server_close()
