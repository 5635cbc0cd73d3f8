"""Watches a node for the cloud's preemption notice, and drains the node when it arrives.

Owns ``farm drain``, a small process on each spot node, started beside ``ray start``. It is a plain
process because an actor would keep the node from being scaled down. Draining makes the node's lanes
save their jobs and return (``dispatch_actor``). ``drain_now`` waits for that, because
Kubernetes sends SIGTERM as soon as a ``preStop`` hook has ended.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from farm.errors import LaneLost

__all__ = [
    "CLOUDS",
    "PreemptionNotice",
    "drain_node",
    "drain_now",
    "drain_on_notice",
    "find_notice",
]

TIMEOUT_S = 2.0
POLL_S = 2.0
"""Google gives 30 s from the notice to the shutdown, so polling must be frequent."""
TOKEN_TTL_S = 21600
LANE_TITLE = "ray::RayTrainWorker"
LINK_LOCAL = "http://169.254.169.254"


@dataclass(frozen=True)
class PreemptionNotice:
    """The cloud will take this machine away."""

    cloud: str
    seconds: float
    """Seconds left until the shutdown."""


Fetch = Callable[[str, str, Mapping[str, str]], str | None]
"""Method, URL and headers of a request; returns the body, or None for a 404."""


def fetch(method: str, url: str, headers: Mapping[str, str]) -> str | None:
    """One request to a metadata server, without any proxy.

    Raises:
        OSError: if the server does not answer, or refuses.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(url, method=method, headers=dict(headers))
    try:
        with opener.open(asked, timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def _aws(endpoint: str, fetch: Fetch) -> float | None:
    """Seconds until EC2 stops or terminates this spot instance (IMDSv2); None without a notice."""
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
    token = fetch("PUT", f"{endpoint}/latest/api/token", ttl) or ""
    url = f"{endpoint}/latest/meta-data/spot/instance-action"
    answer = fetch("GET", url, {"X-aws-ec2-metadata-token": token})
    return None if answer is None else _seconds_until(json.loads(answer)["time"])


def _gcp(endpoint: str, fetch: Fetch) -> float | None:
    """The same for Compute Engine, which gives 30 s."""
    url = f"{endpoint}/computeMetadata/v1/instance/preempted"
    answer = fetch("GET", url, {"Metadata-Flavor": "Google"})
    return 30.0 if answer is not None and answer.strip().upper() == "TRUE" else None


def _azure(endpoint: str, fetch: Fetch) -> float | None:
    """The same for Azure's scheduled events, which give at least 30 s."""
    headers = {"Metadata": "true"}
    events = fetch("GET", f"{endpoint}/metadata/scheduledevents?api-version=2020-07-01", headers)
    found = [one for one in json.loads(events or "{}").get("Events", ()) if _is_preemption(one)]
    if not found:
        return None
    url = f"{endpoint}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    name = fetch("GET", url, headers)
    mine = [one for one in found if name is None or name.strip() in one.get("Resources", ())]
    return min((_seconds_until(one.get("NotBefore", "")) for one in mine), default=None)


def _is_preemption(event: Mapping[str, Any]) -> bool:
    return event.get("EventType") in ("Preempt", "Terminate")


CLOUDS: Mapping[str, tuple[str, Callable[[str, Fetch], float | None]]] = {
    "aws": (LINK_LOCAL, _aws),
    "gcp": ("http://metadata.google.internal", _gcp),
    "azure": (LINK_LOCAL, _azure),
}
"""Address of the metadata server, and the function that queries it."""


def _seconds_until(moment: str) -> float:
    """Parse ISO 8601 or RFC 1123; 30 s if the event has begun or has no time."""
    for read in (dt.datetime.fromisoformat, _from_rfc_1123):
        try:
            left_s = (read(moment) - dt.datetime.now(dt.UTC)).total_seconds()
        except (ValueError, TypeError):
            continue
        return max(1.0, left_s)
    return 30.0


def _from_rfc_1123(moment: str) -> dt.datetime:
    read = dt.datetime.strptime(moment, "%a, %d %b %Y %H:%M:%S GMT")
    return read.replace(tzinfo=dt.UTC)


def find_notice(
    cloud: str, endpoint: str | None = None, fetch: Fetch = fetch
) -> PreemptionNotice | None:
    """Query the metadata server once.

    Raises:
        OSError: if it does not answer.
        ValueError: if its response has an unknown form.
    """
    address, ask = CLOUDS[cloud]
    try:
        seconds = ask((endpoint or address).rstrip("/"), fetch)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"unknown form of a notice: {error!r}") from error
    return None if seconds is None else PreemptionNotice(cloud, seconds)


def drain_node(address: str, seconds: float, reason: str, *, node_id: str | None = None) -> str:
    """Ask the head to drain a node; returns the node's id.

    Args:
        address: of the head, ``host:port``.
        seconds: until the machine is gone.
        node_id: of the node; by default the one that runs on this machine.

    Raises:
        RuntimeError: if no node of the cluster is this machine, or the head refuses.
    """
    import ray
    from ray.core.generated import autoscaler_pb2, gcs_pb2

    from farm.training.cluster.auth import use_token_if_there_is_one

    use_token_if_there_is_one()
    client = ray._raylet.GcsClient(address=address)
    if node_id is None:
        here = ray.util.get_node_ip_address()
        ids = [
            info.node_id.hex()
            for info in client.get_all_node_info(timeout=10).values()
            if info.node_manager_address == here and info.state == gcs_pb2.GcsNodeInfo.ALIVE
        ]
        if len(ids) != 1:
            raise RuntimeError(f"{len(ids)} living nodes of the cluster at {address} are on {here}")
        (node_id,) = ids
    deadline_ms = int((time.time() + seconds) * 1000)
    kind = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = client.drain_node(node_id, kind, reason, deadline_ms)
    if not accepted:
        raise RuntimeError(f"the head does not drain node {node_id}: {why}")
    return node_id


def drain_on_notice(
    address: str, cloud: str, *, endpoint: str | None = None, node_id: str | None = None
) -> None:
    """Wait for a cloud's notice, then drain the node; returns once the head has accepted.

    Raises:
        LaneLost: if the head does not accept before the machine is removed.
    """
    notice = _await_notice(cloud, endpoint)
    _say(f"{cloud}: this machine will be taken away in {notice.seconds:.0f} s")
    _drain_until(address, notice.seconds, f"{cloud} notice", node_id)


def drain_now(address: str, seconds: float, *, node_id: str | None = None) -> None:
    """Drain the node now, and wait until its lanes have returned.

    Raises:
        LaneLost: if the head does not accept in this time.
    """
    until = time.monotonic() + seconds
    _drain_until(address, seconds, "drained by hand", node_id)
    _await_lanes(until)


def _drain_until(address: str, seconds: float, reason: str, node_id: str | None) -> None:
    began = time.monotonic()
    while True:
        try:
            drained = drain_node(address, seconds, reason, node_id=node_id)
            break
        except Exception as error:  # Ray raises many kinds of errors; retry until the deadline
            if time.monotonic() - began > seconds:
                raise LaneLost(
                    f"the node was not drained: {error}", "see whether the head answers"
                ) from error
            time.sleep(1.0)
    _say(f"node {drained} drains, {time.monotonic() - began:.1f} s after the notice")


def _await_lanes(until: float) -> None:
    """Wait until no lane runs on this machine."""
    import psutil

    while time.monotonic() < until:
        titles = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
        if not any(LANE_TITLE in title for title in titles):
            return
        time.sleep(0.5)


def _await_notice(cloud: str, endpoint: str | None) -> PreemptionNotice:
    """Poll until there is a notice. A server that does not answer is reported once."""
    was_silent = False
    while True:
        try:
            notice = find_notice(cloud, endpoint)
            was_silent = False
        except (OSError, ValueError) as error:
            notice = None
            if not was_silent:
                _say(f"the metadata server of {cloud} does not answer: {error}")
            was_silent = True
        if notice is not None:
            return notice
        time.sleep(POLL_S)


def _say(text: str) -> None:
    print(f"farm preemption: {text}", file=sys.stderr, flush=True)
