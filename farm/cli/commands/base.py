"""``farm base``: show, measure and train base models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farm.cli.options import DeviceOption, JsonOption, RevisionOption

__all__ = ["register"]

NameArgument = Annotated[
    str,
    typer.Argument(
        help="embedded, a folder, a URL, a hub id, or a random-weight build such as tiny or sd15."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the ``base`` group to the command line."""
    group = typer.Typer(help="Show, measure and train base models.", no_args_is_help=True)
    group.command()(show)
    group.command()(measure)
    group.command()(train)
    app.add_typer(group, name="base")


def show(name: NameArgument, revision: RevisionOption = None, json: JsonOption = False) -> None:
    """Show folder, fingerprint, size, parameters, prediction type and default recipe of a base."""
    from typing import get_args

    from farm.base.loading import load_base, resolve_folder
    from farm.base.names import BuiltName
    from farm.cli.views.output import print_facts, print_json
    from farm.cli.views.progress import loading_base

    built = name in get_args(BuiltName)
    with loading_base(name) as fetched:
        folder = None if built else resolve_folder(name, revision=revision, fetched=fetched)
        base = load_base(name, device="meta", revision=revision, fetched=fetched)
    memory = base.memory
    facts = {
        "name": name,
        "family": base.family.title,
        "folder": str(folder) if folder else None,
        "fingerprint": base.fingerprint,
        "bytes": _folder_bytes(folder) if folder else memory.weight_bytes,
        "parameters": memory.num_parameters,
        "denoiser_parameters": memory.denoiser_parameters,
        "adapted_parts": ", ".join(base.components),
        "guidance": base.guidance_kind,
        "prediction_type": base.prediction_type,
        "resolution_px": base.resolution_px,
        "latent_channels": memory.latent_channels,
    }
    if json:
        print_json({**facts, "recipe": dict(base.recipe)})
        return
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in base.recipe.items())
    print_facts({**facts, "recipe": shown or None})


def _shown(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(
    name: NameArgument,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", min=1, help="Images per measurement; the documented protocol by default."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the report (Markdown and JSON) to this folder."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure the images of a base with the scorer of the rendered world."""
    from farm.base.embedded.measure import measure_base
    from farm.cli.views.output import print_facts, print_json

    facts = measure_base(name, count=count, out=out)
    print_json(facts) if json else print_facts(facts)


def train(
    name: Annotated[
        str, typer.Argument(help="Base to train: embedded, or an edition of it.")
    ] = "embedded",
    out: Annotated[
        Path, typer.Option("--out", help="Working folder; run again to resume there.")
    ] = Path("embedded-base"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every random stream.")] = 0,
    device: DeviceOption = "cpu",
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", min=0.1, help="Wall-clock limit; the documented steps by default."
        ),
    ] = None,
    budget_s: Annotated[
        float | None,
        typer.Option(
            "--budget-s",
            min=10,
            help="Train the second edition, at 128 px, within this many seconds.",
        ),
    ] = None,
) -> None:
    """Train the embedded base from scratch: scorer, VAE and denoiser.

    `embedded-64` is trained at 64 px and `embedded-128`, the second edition, at 128 px. `embedded`
    is the former, or, with --budget-s, the latter.
    """
    from farm.base.embedded.second.edition import EDITION_128
    from farm.base.names import edition_of
    from farm.errors import UserError
    from farm.local_files import check_folder, writing

    is_second = name == EDITION_128.name or (name == "embedded" and budget_s is not None)
    if not is_second and edition_of(name) != "embedded":
        raise UserError(
            f"{name!r} cannot be trained here", "use `embedded`, `embedded-64` or `embedded-128`"
        )
    if is_second and minutes is not None:
        raise UserError("--minutes is for the first edition", "use --budget-s, in seconds")
    if not is_second and budget_s is not None:
        raise UserError("--budget-s is for the second edition", "use --minutes")
    check_folder(out)
    with writing(out):
        if is_second:
            from farm.base.embedded.second.train import train_edition

            train_edition(out, EDITION_128, device=device, budget_s=budget_s, seed=seed)
            return
        from farm.base.embedded.train import train_embedded

        train_embedded(out, seed=seed, device=device, minutes=minutes)
