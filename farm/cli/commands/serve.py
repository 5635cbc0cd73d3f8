"""``farm serve``: the options of the endpoint, and the config that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.existing_store import existing_store
from farm.cli.options import QuantizeOption, RevisionOption, quantization_of, with_options
from farm.cli.serving import serve_here
from farm.cli.serving_on_ray import RayRun, serve_with_ray

if TYPE_CHECKING:
    from farm.serving.settings import EndpointConfig
    from farm.storage import Store

__all__ = ["register"]

DRAIN_S = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def register(app: typer.Typer) -> None:
    """Add ``serve`` to the command line."""
    app.command()(serve)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of ``farm serve``."""

    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            envvar="FARM_STORE",
            help="Folder or fsspec URL with the adapters; may be in the config file instead.",
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="Base model: embedded (default), tiny, a folder, a URL or a hub id."
        ),
    ] = None
    revision: RevisionOption = None
    quantize: QuantizeOption = None
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; all but loopback need keys.")
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 for any free one.")
    ] = 8000
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace", help="Namespace served without a key, as long as there are no keys."
        ),
    ] = "default"
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, or auto (default).")
    ] = None
    slots: Annotated[
        int, typer.Option("--slots", min=0, help="Adapters loaded in the model; 0 for automatic.")
    ] = 0
    max_rank: Annotated[
        int | None,
        typer.Option(
            "--max-rank",
            min=1,
            max=256,
            help="Refuse adapters above this rank; no limit by default.",
        ),
    ] = None
    config: Annotated[
        str,
        typer.Option(
            "--config", help="YAML file with fields of EndpointConfig; options override it."
        ),
    ] = ""
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on Ray Serve, with engines in their own processes.")
    ] = False
    engines: Annotated[
        int, typer.Option("--engines", min=1, help="Engine processes, with --ray.")
    ] = 1
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            envvar="RAY_ADDRESS",
            help="Ray cluster for --ray, or auto for the one of this machine; else one is started.",
        ),
    ] = None
    start_timeout: Annotated[
        float,
        typer.Option("--start-timeout", min=1, help="Seconds until --ray must be ready."),
    ] = 600.0
    drain: Annotated[
        float | None,
        typer.Option(
            "--drain",
            min=0,
            help="Seconds to finish running requests at the end; 30, or replicas.drain_s on Ray.",
        ),
    ] = None


@with_options
def serve(options: ServeOptions) -> None:
    """Serve the base and every adapter of a store over OpenAI's image API.

    Stop it with Ctrl-C: it refuses new requests and finishes the running ones.
    """
    settings = _settings(options)
    _check_exposure(existing_store(settings.store), options.host)
    if options.ray:
        run = RayRun(
            host=options.host,
            port=options.port,
            address=options.address,
            start_timeout_s=options.start_timeout,
            drain_s=options.drain,
        )
        serve_with_ray(settings, run)
    else:
        drain_s = DRAIN_S if options.drain is None else options.drain
        serve_here(settings, options.host, options.port, drain_s)


def _settings(options: ServeOptions) -> EndpointConfig:
    """The config of the endpoint, from the file and the options.

    Raises:
        UserError: if no store is given, or a field is unknown or has an invalid value.
    """
    from pydantic import ValidationError

    from farm.errors import UserError
    from farm.serving.settings import EndpointConfig

    values = _read_config(options.config) if options.config else {}
    for name in ("store", "base", "revision", "device"):
        if (given := getattr(options, name)) is not None:
            values[name] = given
    if (quantization := quantization_of(options.quantize)) is not None:
        values["quantization"] = quantization
    if not values.get("store"):
        raise UserError(
            "no store is given",
            "add --store FOLDER, set FARM_STORE, or write `store:` into the config file",
        )
    anonymous = options.namespace if options.host in LOOPBACK else None
    values.setdefault("anonymous_namespace", anonymous)
    _set_engines(values, options)
    try:
        return EndpointConfig.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise UserError(f"invalid config: {faults}", "docs/serving.md lists its fields") from None


def _set_engines(values: dict[str, Any], options: ServeOptions) -> None:
    """Put the options of engines and replicas into the config's values.

    Raises:
        UserError: if the file has something other than fields where they belong.
    """
    from farm.errors import UserError

    engine = values.setdefault("engine", {})
    replicas = values.setdefault("replicas", {})
    for name, section in (("engine", engine), ("replicas", replicas)):
        if not isinstance(section, dict):
            raise UserError(f"{options.config}: {name}: has no fields", "see docs/serving.md")
    if options.max_rank is not None:
        engine["max_rank"] = options.max_rank
    if options.slots:
        engine["num_slots"] = options.slots + 1  # the bare base has a slot of its own
    replicas.setdefault("max_engines", options.engines)
    replicas.setdefault("min_engines", options.engines)
    if options.ray and values.get("device", "auto") != "cpu":
        replicas.setdefault("gpus_per_engine", _gpu_share(options.engines))


def _gpu_share(engines: int) -> float:
    """GPU fraction per engine on this machine: 1, 1/2, 1/4, …; 0 without GPUs."""
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
        raise UserError(f"cannot read {file}: {error}", "give a YAML file") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} has no fields", "see docs/serving.md")
    return values


def _check_exposure(store: Store, host: str) -> None:
    """Refuse to listen on a network without keys.

    Raises:
        UserError: if the host is not loopback and the store has no valid key.
    """
    from farm.errors import UserError
    from farm.serving.access.api_keys import list_keys

    if host in LOOPBACK or any(is_good for _, is_good in list_keys(store)):
        return
    raise UserError(
        f"without keys the endpoint does not listen on {host}",
        f"create one with `farm keys create --store {store.url}`, or listen on 127.0.0.1",
    )
