"""The life of the application that ``farm serve --ray`` runs: start, readiness, drain, removal.

Owns the deadline of the start and its reasons, and the order of the end: readiness first, then new
requests, then the requests in flight, then the application. Needs a connected Ray.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve

from farm.errors import FarmError
from farm.serving.client import ServedBase
from farm.serving.cluster.client import ENGINE
from farm.serving.cluster.environment import proxy_environment
from farm.serving.cluster.places import check_fits, choose_ingresses
from farm.serving.cluster.proxy import ProxyReport, Stage, set_stage
from farm.serving.cluster.scaling import cluster_limit, cluster_nodes
from farm.serving.settings import EndpointConfig, ReplicaConfig

__all__ = [
    "APPLICATION",
    "INGRESS",
    "deploy",
    "drain",
    "place_ingresses",
    "remove",
    "served_base",
    "set_proxies",
    "wait_ready",
]

APPLICATION = "farm"
"""Name of the application on Ray Serve."""
INGRESS = "ingress"
"""The name of the ingress deployment."""
PROXIES = "SERVE_PROXY_ACTOR"
REPLICAS = "SERVE_REPLICA::"
LOOK_S = 0.5
REPORT_EVERY_S = 5.0
REPEAT_EVERY_S = 30.0
ANSWER_S = 5.0
FACTS_S = 60.0
REMOVE_S = 15.0
REQUEST_MARGIN_S = 60.0
"""A proxy abandons a request this much later than the endpoint itself."""

Report = Callable[[str], None]


def place_ingresses(config: EndpointConfig) -> EndpointConfig:
    """The config with the number of ingresses that suits the connected cluster.

    Raises:
        UserError: if engines and ingresses can never fit on it.
    """
    nodes, replicas = cluster_nodes(), config.replicas
    check_fits(nodes, replicas, cluster_limit())
    chosen = replicas.model_copy(update={"num_ingresses": choose_ingresses(nodes, replicas)})
    return config.model_copy(update={"replicas": chosen})


def deploy(application: serve.Application, config: EndpointConfig, host: str, port: int) -> None:
    """Start Ray Serve and the application; returns before they are ready."""
    serve.start(
        proxy_location="EveryNode",
        http_options={
            "host": host,
            "port": port,
            "request_timeout_s": config.limits.deadline_s + REQUEST_MARGIN_S,
        },
        # proxies inherit it, also on a cluster that was started without these variables
        controller_options={"runtime_env": {"env_vars": proxy_environment(config.connections)}},
    )
    target = serve.RunTarget(application, name=APPLICATION, route_prefix="/")
    serve.run_many(
        [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )
    set_proxies("serving", is_alone=False)  # proxies of an earlier endpoint may still refuse


# -- the start -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far the replicas of one deployment are."""

    name: str
    wanted: int
    running: int
    placed: int
    """Replicas with resources, running ones included."""

    def __str__(self) -> str:
        parts = [f"{self.running} of {self.wanted} running"]
        if loading := self.placed - self.running:
            parts.append(f"{loading} loading")
        if waiting := self.wanted - self.placed:
            parts.append(f"{waiting} waiting for resources or a process")
        return f"{self.name}: {', '.join(parts)}"


def wait_ready(
    replicas: ReplicaConfig,
    timeout_s: float,
    report: Report,
    *,
    cluster_words: Callable[[], str],
    stop: threading.Event,
) -> bool:
    """Wait for engines and ingresses, and report what is pending meanwhile.

    Args:
        cluster_words: describes the cluster's nodes and its autoscaler's state.

    Returns:
        Whether the endpoint is up; False if ``stop`` was set first. An endpoint that lacks some
        replicas at the deadline is up, and the report says what is missing.

    Raises:
        FarmError: if it cannot start, or has no engine or no ingress at the deadline.
    """
    until_s = time.monotonic() + timeout_s
    last, reported_s = "", time.monotonic()
    while not stop.wait(LOOK_S):
        status = serve.status().applications.get(APPLICATION)
        if status is None:
            continue
        if status.status == "RUNNING":
            return True
        # a replica that dies while others start is replaced; one whose start fails is not
        if any(part.status == "DEPLOY_FAILED" for part in status.deployments.values()):
            raise FarmError(*_failure(status))
        now_s = time.monotonic()
        if now_s - reported_s < REPORT_EVERY_S and now_s < until_s:
            continue
        parts = _progress(replicas, status)
        line = "; ".join(map(str, parts))
        if now_s >= until_s:
            return _at_deadline(parts, timeout_s, report, cluster_words())
        if line != last or now_s - reported_s > REPEAT_EVERY_S:
            is_waiting = any(part.placed < part.wanted for part in parts)
            report(f"{line} ({cluster_words()})" if is_waiting else line)
            last, reported_s = line, now_s
    return False


def _at_deadline(
    parts: Iterable[_Progress], timeout_s: float, report: Report, cluster: str
) -> bool:
    lines = "; ".join(map(str, parts))
    if all(part.running for part in parts):
        report(f"not complete after {timeout_s:g} s: {lines}. {cluster}")
        return True
    is_placed = all(part.placed for part in parts)
    raise FarmError(
        f"the endpoint is not ready after {timeout_s:g} s: {lines}. {cluster}",
        "a base that is downloaded first takes longer: --start-timeout 1800"
        if is_placed
        else "free or add resources, lower `replicas` in the config file, or wait longer with "
        "--start-timeout",
    )


def _progress(replicas: ReplicaConfig, status: Any) -> list[_Progress]:
    placed = Counter(deployment for deployment, state in _replica_actors() if state == "ALIVE")
    wanted = {INGRESS: replicas.num_ingresses or 1, ENGINE: max(1, replicas.min_engines)}
    parts = []
    for name, count in wanted.items():
        states = status.deployments[name].replica_states if name in status.deployments else {}
        running = int(states.get("RUNNING", 0))
        parts.append(_Progress(name, count, running, max(running, min(placed[name], count))))
    return parts


def _replica_actors() -> list[tuple[str, str]]:
    """Deployment and state of each of the application's replicas."""
    prefix = f"{REPLICAS}{APPLICATION}#"
    return [
        (str(actor["Name"]).removeprefix(prefix).partition("#")[0], str(actor["State"]))
        for actor in ray._private.state.actors().values()
        if str(actor["Name"]).startswith(prefix)
    ]


def _failure(status: Any) -> tuple[str, str]:
    """Why the application cannot start: the farm's own error if there is one in Ray's text."""
    text = "\n".join([status.message, *(part.message for part in status.deployments.values())])
    own = re.search(r"farm\.errors\.\w+: (.+)(?:\n\s*remedy: (.+))?", text)
    if own is not None:
        return own[1].strip(), (own[2] or "").strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"the endpoint cannot start: {lines[-1] if lines else 'no reason given'}", (
        "the replicas' logs are in the folder of Ray's session, under logs/serve"
    )


# -- the end -------------------------------------------------------------------------------------


def drain(replicas: ReplicaConfig, within_s: float, report: Report, hurry: threading.Event) -> int:
    """Fail readiness, then refuse new requests, then wait for those in flight.

    Returns:
        How many requests were still in flight after ``within_s``, or when ``hurry`` was set.
    """
    is_alone = len(serve.status().applications) <= 1
    reports = set_proxies("unready", is_alone=is_alone)
    if not any(each.is_installed for each in reports):
        report(
            "the cluster's proxies cannot be drained; docs/guides/cluster.md says what they need"
        )
        return 0
    hurry.wait(replicas.unready_s)
    until_s, left, has_reported = time.monotonic() + within_s, 0, False
    while not hurry.is_set():
        left = sum(each.in_flight for each in set_proxies("refusing", is_alone=is_alone))
        if not left or time.monotonic() > until_s:
            break
        if not has_reported:
            report(f"finishing {left} request{'s' * (left != 1)}; new ones are answered with 503")
            has_reported = True
        hurry.wait(LOOK_S / 2)
    return left


def served_base() -> ServedBase:
    """The base, as the engines describe it."""
    engine = serve.get_deployment_handle(ENGINE, APPLICATION)
    facts: ServedBase = engine.facts.remote().result(timeout_s=FACTS_S)
    return facts


def remove() -> None:
    """Remove the application from a cluster that continues; other applications keep running.

    Returns after ``REMOVE_S`` at the latest: Ray Serve waits much longer for replicas that have
    not started, and removes them in the background.
    """
    serve.delete(APPLICATION, _blocking=False)
    until_s = time.monotonic() + REMOVE_S
    while APPLICATION in (left := serve.status().applications) and time.monotonic() < until_s:
        time.sleep(LOOK_S)
    if not left:
        serve.shutdown()
    elif APPLICATION not in left:
        set_proxies("serving", is_alone=False)


def set_proxies(stage: Stage, *, is_alone: bool) -> list[ProxyReport]:
    """Set the stage of every proxy. One that does not answer is replaced by Ray Serve; the
    replacement is set by the next call."""
    proxies = []
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["name"].startswith(PROXIES):
            try:
                proxies.append(ray.get_actor(entry["name"], namespace=entry["namespace"]))
            except ValueError:  # it ended meanwhile
                continue
    calls = [proxy.__ray_call__.remote(set_stage, stage, is_alone) for proxy in proxies]
    if not calls:
        return []
    answered, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_S)
    reports = []
    for call in answered:
        try:
            reports.append(ray.get(call))
        except ray.exceptions.RayError:
            continue
    return reports
