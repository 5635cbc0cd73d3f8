"""``farm base``: show, measure and make base models."""

from __future__ import annotations

from pathlib import Path

import typer

__all__ = ["register"]

NAME = typer.Argument(help="embedded, tiny, tiny-v, sd15, a folder, a URL, or a hub id.")
JSON = typer.Option(False, "--json", help="Print one JSON document on the last line.")


def register(app: typer.Typer) -> None:
    """Add the ``base`` group to the command line."""
    group = typer.Typer(help="Base models: show, measure, train.", no_args_is_help=True)
    group.command()(show)
    group.command()(measure)
    group.command()(train)
    app.add_typer(group, name="base")


def show(
    name: str = NAME,
    revision: str = typer.Option(None, help="Branch, tag or commit of a hub id."),
    json: bool = JSON,
) -> None:
    """Tell folder, fingerprint, bytes, parameters and prediction type of a base."""
    from typing import get_args

    from farm.base.loading import load_base, resolve_folder
    from farm.base.names import BuiltName
    from farm.cli.output import print_facts, print_json
    from farm.cli.progress import loading_base

    built = name in get_args(BuiltName)
    with loading_base(name) as fetched:
        folder = None if built else resolve_folder(name, revision=revision, fetched=fetched)
        base = load_base(name, revision=revision, fetched=fetched)
    memory = base.memory
    facts = {
        "name": name,
        "folder": str(folder) if folder else None,
        "fingerprint": base.fingerprint,
        "bytes": _folder_bytes(folder) if folder else memory.weight_bytes,
        "parameters": memory.num_parameters,
        "denoiser_parameters": memory.denoiser_parameters,
        "prediction_type": base.prediction_type,
        "resolution_px": base.resolution_px,
        "latent_channels": memory.latent_channels,
    }
    print_json(facts) if json else print_facts(facts)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(
    name: str = NAME,
    count: int = typer.Option(
        None, min=1, help="Pictures per measurement; the default is the documented protocol's."
    ),
    out: Path = typer.Option(None, help="Write the report (Markdown and JSON) into this folder."),
    json: bool = JSON,
) -> None:
    """Measure the images that a base generates, with the scorer of the synthetic world."""
    from farm.base.embedded.measure import measure_base
    from farm.cli.output import print_facts, print_json

    facts = measure_base(name, count=count, out=out)
    print_json(facts) if json else print_facts(facts)


def train(
    name: str = typer.Argument("embedded", help="Only `embedded` can be trained."),
    out: Path = typer.Option(Path("embedded-base"), help="Working folder; a rerun resumes there."),
    seed: int = typer.Option(0, min=0, help="Seed of all random streams."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    minutes: float = typer.Option(
        None, min=0.1, help="Wall-clock budget; the default trains the documented steps."
    ),
) -> None:
    """Train the embedded base from scratch: scorer, VAE and denoiser."""
    from farm.base.embedded.train import train_embedded
    from farm.errors import UserError

    if name != "embedded":
        raise UserError(f"{name!r} cannot be trained here", "only `embedded` can")
    train_embedded(out, seed=seed, device=device, minutes=minutes)
