"""``farm serve`` and ``farm keys``: run the endpoint here, and manage its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from farm.cli.serve_start import StartLines, inventory_beside, report_limit, what_is_served

if TYPE_CHECKING:
    from collections.abc import Callable

    from farm.serving.client import LocalEngine
    from farm.serving.settings import EndpointConfig

__all__ = ["register"]

STORE = typer.Option(..., "--store", envvar="FARM_STORE", help="Folder or URL with the adapters.")
JSON = typer.Option(False, "--json", help="Print one JSON document on the last line.")
APPLICATION = "farm"
"""Its name on Ray Serve."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def register(app: typer.Typer) -> None:
    """Add ``serve`` and the ``keys`` group to the command line."""
    app.command()(serve)
    group = typer.Typer(help="Keys of the endpoint: create, list, revoke.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_)
    group.command("revoke")(revoke)
    app.add_typer(group, name="keys")


# -- serving -----------------------------------------------------------------------------------


def serve(
    store: str = typer.Option(
        None,
        "--store",
        envvar="FARM_STORE",
        help="Folder or URL with the adapters; may be in the config file instead.",
    ),
    base: str = typer.Option(
        None, help="embedded (if left out), tiny, a folder, a URL, or a hub id."
    ),
    revision: str = typer.Option(None, help="Branch, tag or commit of a hub id."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; any other requires keys."),
    port: int = typer.Option(8000, min=0, max=65535, help="0 takes any free one."),
    namespace: str = typer.Option(
        "default", help="Namespace served without a key, while no keys exist."
    ),
    device: str = typer.Option(None, help="cpu, cuda, or auto (if left out)."),
    slots: int = typer.Option(0, min=0, help="Adapters in the model at once; 0 for automatic."),
    max_rank: int = typer.Option(
        None, min=1, max=256, help="Refuse adapters of a higher rank; no limit if left out."
    ),
    config: str = typer.Option("", help="YAML file with fields of EndpointConfig; options win."),
    ray: bool = typer.Option(False, "--ray", help="Run on Ray Serve, engines in processes."),
    engines: int = typer.Option(1, min=1, help="With --ray: engine processes."),
    drain: float = typer.Option(
        30.0, min=0, help="Seconds to finish running requests after a stop."
    ),
) -> None:
    """Serve the base and every adapter of a store over OpenAI's image interface.

    Stop it with Ctrl-C: it accepts no new requests and finishes the running ones.
    """
    settings = _settings(
        config,
        store=store,
        base=base,
        revision=revision,
        device=device,
        namespace=namespace if host in LOOPBACK else None,
        slots=slots,
        max_rank=max_rank,
        engines=engines,
        with_ray=ray,
    )
    _check_exposure(settings.store, host)
    if ray:
        _serve_with_ray(settings, host, port)
    else:
        _serve_here(settings, host, port, drain)


def _settings(file: str, **options: Any) -> EndpointConfig:
    """The endpoint's config from a file and the options of the command line."""
    from pydantic import ValidationError

    from farm.errors import UserError
    from farm.serving.settings import EndpointConfig

    values = _read_config(file) if file else {}
    given = {name: options[name] for name in ("store", "base", "revision", "device")}
    values.update({name: value for name, value in given.items() if value is not None})
    values.setdefault("anonymous_namespace", options["namespace"])
    if not values.get("store"):
        raise UserError(
            "no store is given",
            "add --store FOLDER, set FARM_STORE, or write `store:` into the config file",
        )
    engine = values.setdefault("engine", {})
    if not isinstance(engine, dict):
        raise UserError(f"{file}: engine: has no fields", "see docs/serving.md")
    if options["max_rank"] is not None:
        engine["max_rank"] = options["max_rank"]
    if options["slots"]:
        engine["num_slots"] = options["slots"] + 1  # the bare base has one of its own
    values.setdefault("replicas", {}).setdefault("max_engines", options["engines"])
    values["replicas"].setdefault("min_engines", options["engines"])
    if options["with_ray"] and values.get("device", "auto") != "cpu":
        values["replicas"].setdefault("gpus_per_engine", _gpu_share(options["engines"]))
    try:
        return EndpointConfig.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise UserError(
            f"the config is wrong: {faults}", "docs/serving.md lists its fields"
        ) from None


def _gpu_share(engines: int) -> float:
    """The GPU fraction per engine on this machine: 1, 1/2, 1/4, …; 0 without GPUs."""
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        return 0.0
    per_gpu = -(-engines // gpus)
    return 0.5 ** (per_gpu - 1).bit_length()


def _read_config(file: str) -> dict[str, Any]:
    from pathlib import Path

    import yaml

    from farm.errors import UserError

    try:
        values = yaml.safe_load(Path(file).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {file}: {error}", "name a YAML file") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} has no fields", "see docs/serving.md")
    return values


def _check_exposure(store: str, host: str) -> None:
    """Without keys the endpoint may listen on loopback only.

    Raises:
        UserError: if it would be open to a network.
    """
    from farm.errors import UserError
    from farm.serving.access.api_keys import list_keys
    from farm.storage import Store

    if host in LOOPBACK or any(is_good for _, is_good in list_keys(Store(store))):
        return
    raise UserError(
        f"without keys the endpoint does not listen on {host}",
        f"make one with 'farm keys create --store {store}', or listen on 127.0.0.1",
    )


def _serve_here(settings: EndpointConfig, host: str, port: int, drain_s: float) -> None:
    """Engine and HTTP in this process."""
    import secrets
    import threading

    from farm.serving.build import build_engine, build_services
    from farm.serving.client import LocalEngine
    from farm.serving.http.app import create_app
    from farm.serving.http_server import bounded_config
    from farm.serving.metrics import PrometheusMetrics

    report = StartLines()
    inventory = inventory_beside(settings.store)
    report(f"loading the base {settings.base} …")
    engine, facts = build_engine(settings)
    report(f"loaded on {engine.base.device}; starting …")
    engine.start()
    for line in what_is_served(inventory, settings, facts.fingerprint):
        report(line)
    if not engine.wait_until_measured(0):
        report("measuring the batch limit of this base on this machine in the background, once")
        threading.Thread(target=report_limit, args=(engine, report), daemon=True).start()
    client = LocalEngine(engine, facts)
    services = build_services(
        settings, client, PrometheusMetrics(), link_secret=secrets.token_bytes(32)
    )
    server = _draining_server(
        bounded_config(
            create_app(services),
            settings.connections,
            host=host,
            port=port,
            timeout_graceful_shutdown=max(1, int(drain_s)),
        ),
        client,
        f"{settings.public_base} and the adapters of {settings.store}",
        report,
    )
    try:
        server.run()
    finally:
        engine.stop()


def _draining_server(
    config: Any, client: LocalEngine, what: str, report: Callable[[str], None]
) -> Any:
    """A server that reports its address, and accepts no request after a stop signal."""
    import signal

    import uvicorn

    class DrainingServer(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                for server in self.servers:
                    address = server.sockets[0].getsockname()
                    report(f"serving {what} at http://{address[0]}:{address[1]}")

        def handle_exit(self, sig: int, frame: Any) -> None:
            # a stop signal is not an error, so it is not raised again afterwards
            client.drain()
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    return DrainingServer(config)


def _serve_with_ray(settings: EndpointConfig, host: str, port: int) -> None:
    """Run the Ray Serve application on a cluster, or on a local Ray of this command's own.

    Other applications on a shared cluster keep running when this one ends.
    """
    import contextlib
    import os
    import signal
    import threading

    from farm.serving.http_server import ray_environment

    # read when Ray is imported, and by the processes that it starts
    for name, value in ray_environment(settings.connections).items():
        os.environ.setdefault(name, value)

    import ray
    from ray import serve as ray_serve

    from farm.serving.app import build_app
    from farm.serving.cluster.client import ENGINE
    from farm.training.cluster.auth import use_token_if_there_is_one
    from farm.training.cluster.ray_folder import ray_folder_options

    use_token_if_there_is_one()
    report = StartLines()
    inventory = inventory_beside(settings.store)
    port = port or _free_port(host)
    report(f"starting Ray Serve with the base {settings.base} …")
    folder = {} if os.environ.get("RAY_ADDRESS") else ray_folder_options()
    ray.init(ignore_reinit_error=True, log_to_driver=False, **folder)
    try:
        ray_serve.start(http_options={"host": host, "port": port})
        ray_serve.run(build_app(settings), name=APPLICATION, route_prefix="/")
        stop = threading.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):  # a stop signal is not an error
            signal.signal(sign, lambda *_: stop.set())
        engine = ray_serve.get_deployment_handle(ENGINE, APPLICATION)
        facts = engine.facts.remote().result(timeout_s=60)
        for line in what_is_served(inventory, settings, facts.fingerprint):
            report(line)
        report(f"serving {settings.public_base} at http://{host}:{port}")
        stop.wait()
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray_serve.delete(APPLICATION)
            if not ray_serve.status().applications:
                ray_serve.shutdown()
        ray.shutdown()


def _free_port(host: str) -> int:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


# -- keys --------------------------------------------------------------------------------------


def create(
    store: str = STORE,
    namespace: str = typer.Option("default", help="Namespace whose adapters the key may use."),
    label: str = typer.Option("", help="Free text, such as the app that uses the key."),
    rate: int = typer.Option(
        None, min=1, help="Pictures per minute; default: the endpoint's limit."
    ),
    operator: bool = typer.Option(
        False, "--operator", help="Allow /metrics, which covers all namespaces."
    ),
    json: bool = JSON,
) -> None:
    """Create a key and print it. It is shown only once; the store keeps its hash."""
    from farm.cli.output import print_json
    from farm.serving.access.api_keys import create_key
    from farm.storage import Store

    token, record = create_key(
        Store(store), namespace, label=label, pictures_per_minute=rate, operator=operator
    )
    if json:
        print_json({"key": token, "key_id": record.key_id, "namespace": record.namespace})
    else:
        print(token)


def list_(store: str = STORE, json: bool = JSON) -> None:
    """List every key: its id, namespace and label, and whether it is valid."""
    from farm.cli.output import print_json, print_table
    from farm.serving.access.api_keys import list_keys
    from farm.storage import Store

    rows = [
        (
            record.key_id,
            record.namespace,
            record.label,
            record.created,
            "yes" if good else "revoked",
        )
        for record, good in list_keys(Store(store))
    ]
    headers = ("key_id", "namespace", "label", "created", "good")
    if json:
        print_json([dict(zip(headers, row, strict=True)) for row in rows])
    else:
        print_table(headers, rows)


def revoke(
    key_id: str = typer.Argument(help="As 'farm keys list' shows it."),
    store: str = STORE,
    reason: str = typer.Option("", help="For the books."),
) -> None:
    """Make a key useless; endpoints notice within seconds."""
    from farm.serving.access.api_keys import revoke_key
    from farm.storage import Store

    revoke_key(Store(store), key_id, reason)
    print(f"revoked {key_id}")
