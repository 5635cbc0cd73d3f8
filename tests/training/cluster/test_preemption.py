"""Notices of AWS, GCP and Azure, read from a local metadata server."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from farm.training.cluster.preemption import find_notice


class Metadata(BaseHTTPRequestHandler):
    """Serves what the three clouds' servers do, and asks for their headers."""

    answers: dict[str, str] = {}
    needs = {
        "/latest/api/token": ("X-aws-ec2-metadata-token-ttl-seconds", "21600"),
        "/latest/meta-data": ("X-aws-ec2-metadata-token", "a-token"),
        "/computeMetadata": ("Metadata-Flavor", "Google"),
        "/metadata": ("Metadata", "true"),
    }

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        for prefix, (header, value) in self.needs.items():
            if path.startswith(prefix) and self.headers.get(header) != value:
                self.send_error(401)
                return
        if (body := self.answers.get(path)) is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def do_PUT(self) -> None:  # noqa: N802
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Metadata.answers = {"/latest/api/token": "a-token"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def in_two_minutes() -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=120)


def test_aws_gives_no_notice_until_the_instance_is_to_be_stopped(endpoint: str) -> None:
    assert find_notice("aws", endpoint) is None
    action = {"action": "terminate", "time": in_two_minutes().strftime("%Y-%m-%dT%H:%M:%SZ")}
    Metadata.answers["/latest/meta-data/spot/instance-action"] = json.dumps(action)
    notice = find_notice("aws", endpoint)
    assert notice is not None
    assert 110 < notice.seconds <= 120


def test_gcp_gives_no_notice_until_the_instance_is_preempted(endpoint: str) -> None:
    Metadata.answers["/computeMetadata/v1/instance/preempted"] = "FALSE"
    assert find_notice("gcp", endpoint) is None
    Metadata.answers["/computeMetadata/v1/instance/preempted"] = "TRUE"
    notice = find_notice("gcp", endpoint)
    assert notice is not None
    assert notice.seconds == 30


def test_azure_gives_notice_of_this_machine_alone(endpoint: str) -> None:
    def announce(kind: str, machine: str) -> None:
        moment = in_two_minutes().strftime("%a, %d %b %Y %H:%M:%S GMT")
        event = {"EventType": kind, "Resources": [machine], "NotBefore": moment}
        Metadata.answers["/metadata/scheduledevents"] = json.dumps({"Events": [event]})

    Metadata.answers["/metadata/instance/compute/name"] = "mine"
    Metadata.answers["/metadata/scheduledevents"] = json.dumps({"Events": []})
    assert find_notice("azure", endpoint) is None
    announce("Preempt", "another")
    assert find_notice("azure", endpoint) is None
    announce("Reboot", "mine")
    assert find_notice("azure", endpoint) is None
    announce("Preempt", "mine")
    notice = find_notice("azure", endpoint)
    assert notice is not None
    assert 110 < notice.seconds <= 120


def test_a_server_that_is_not_there_or_answers_nonsense_is_an_error(endpoint: str) -> None:
    with pytest.raises(OSError, match="refused"):
        find_notice("gcp", "http://127.0.0.1:1")
    Metadata.answers["/latest/meta-data/spot/instance-action"] = "[]"
    with pytest.raises(ValueError, match="unknown form"):
        find_notice("aws", endpoint)
