"""Notices of AWS, GCP and Azure, read from a local metadata server."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator

import pytest
from support.training.metadata_server import MetadataServer, metadata_server

from farm.training.cluster.preemption import find_notice


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with metadata_server() as running:
        yield running


def in_two_minutes() -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=120)


def test_aws_gives_no_notice_until_the_instance_is_to_be_stopped(server: MetadataServer) -> None:
    assert find_notice("aws", server.endpoint) is None
    action = {"action": "terminate", "time": in_two_minutes().strftime("%Y-%m-%dT%H:%M:%SZ")}
    server.answers["/latest/meta-data/spot/instance-action"] = json.dumps(action)
    notice = find_notice("aws", server.endpoint)
    assert notice is not None
    assert 110 < notice.seconds <= 120


def test_gcp_gives_no_notice_until_the_instance_is_preempted(server: MetadataServer) -> None:
    server.answers["/computeMetadata/v1/instance/preempted"] = "FALSE"
    assert find_notice("gcp", server.endpoint) is None
    server.answers["/computeMetadata/v1/instance/preempted"] = "TRUE"
    notice = find_notice("gcp", server.endpoint)
    assert notice is not None
    assert notice.seconds == 30


def test_azure_gives_notice_of_this_machine_alone(server: MetadataServer) -> None:
    def announce(kind: str, machine: str) -> None:
        moment = in_two_minutes().strftime("%a, %d %b %Y %H:%M:%S GMT")
        event = {"EventType": kind, "Resources": [machine], "NotBefore": moment}
        server.answers["/metadata/scheduledevents"] = json.dumps({"Events": [event]})

    server.answers["/metadata/instance/compute/name"] = "mine"
    server.answers["/metadata/scheduledevents"] = json.dumps({"Events": []})
    assert find_notice("azure", server.endpoint) is None
    announce("Preempt", "another")
    assert find_notice("azure", server.endpoint) is None
    announce("Reboot", "mine")
    assert find_notice("azure", server.endpoint) is None
    announce("Preempt", "mine")
    notice = find_notice("azure", server.endpoint)
    assert notice is not None
    assert 110 < notice.seconds <= 120


def test_a_server_that_is_not_there_or_answers_nonsense_is_an_error(server: MetadataServer) -> None:
    with pytest.raises(OSError, match="refused"):
        find_notice("gcp", "http://127.0.0.1:1")
    server.answers["/latest/meta-data/spot/instance-action"] = "[]"
    with pytest.raises(ValueError, match="unknown form"):
        find_notice("aws", server.endpoint)
