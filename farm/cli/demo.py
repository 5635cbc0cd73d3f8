"""``farm demo``: rendered subjects, trained through the whole path, served and shown.

Owns the demo's manifest: its subjects are rendered by the embedded base's own world, the article's
pair first (one particular cat and one decorative mushroom); and which pictures its endpoint is
asked for. Everything else is ``farm run`` and ``farm serve``.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.errors import FarmError

if TYPE_CHECKING:
    from farm.training.run.request import PreparedRun

__all__ = ["demo", "write_demo_manifest"]

STEPS = 400
RECIPE = {
    "num_prior_images": 32,
    "crops_per_photo": 2,
    # 1 holds subjects back on so small a base; the less, the more their classes drift
    "prior_weight": 0.5,
    "checkpoint_every": 100,
}
"""Short, for minutes on two cores; ``jobs/`` holds recipes for real work."""
SAMPLE_PROMPTS = ("a photo of [V] {class_noun}", "a photo of [V] {class_noun} {place}")
SEED = 7
"""Of the pictures that the endpoint generates."""
PLACES = ("in space", "in the snow", "on the beach", "in the forest")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for photos, store and report.")] = Path(
        "demo"
    ),
    subjects: Annotated[int, typer.Option(min=2, max=200, help="Subjects to draw.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each.")] = STEPS,
    base: Annotated[str, typer.Option("--base", help="Base to train on.")] = "embedded",
    in_process: Annotated[
        bool, typer.Option("--in-process", help="One lane in this process, without Ray.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document at the end.")] = False,
) -> None:
    """Render subjects, train an adapter for each, serve them all, and show the pictures.

    Needs nothing, and minutes on two cores. Run again, it finds everything done.
    """
    from farm.cli.run import finish, prepare, run_prepared, show_plan
    from farm.intake.scoring import WHOLE_CARD, ScoringSettings
    from farm.quality.judge import QualityJudge
    from farm.training.run.request import RunRequest

    began = time.monotonic()
    manifest = write_demo_manifest(out, subjects, steps)
    print(f"drew {subjects} subjects into {out / 'photos'}", file=sys.stderr)
    request = RunRequest(
        str(manifest),
        str(out / "store"),
        base=base,
        executor="local" if in_process else "ray",
        make_judge=QualityJudge,
        scoring=ScoringSettings(share=WHOLE_CARD),
    )
    prepared = prepare(request)
    show_plan(prepared)
    summary = run_prepared(prepared, plain=json)
    failure = _serve_and_keep(prepared)
    page = finish(prepared, summary, write_report=True, json=json)
    if not json:
        typer.echo(f"photos: {out / 'photos'}")
        if page:
            typer.echo(f"open {page} in a browser to see what was learned")
        typer.echo(f"took {time.monotonic() - began:.0f} s")
    if failure is not None:  # the adapters are there, and so is the report without these pictures
        raise failure
    if not json:
        typer.echo("generate more pictures in a browser at http://127.0.0.1:8000 with:")
        typer.echo(_serve_line(request.store, base))
    raise typer.Exit(summary.exit_code)


def _serve_and_keep(prepared: PreparedRun) -> FarmError | None:
    """Generate one picture per class through an endpoint, and keep them for the report.

    Returns:
        Why it could not be done; None if it was, or if there is no adapter to do it with.
    """
    from farm.cli.endpoint import own_endpoint
    from farm.quality.report.served import keep_served

    prompts = _prompts_by_class(prepared)
    if not prompts:
        return None
    print("starting the endpoint on the demo's store …", file=sys.stderr)
    try:
        with own_endpoint(prepared.store.url, ("--base", prepared.request.base)) as endpoint:
            pictures = endpoint.generate_all(prompts, seed=SEED)
        keep_served(prepared.store, prepared.run_id, pictures)
    except FarmError as error:
        return error
    print(f"the endpoint generated {len(pictures)} pictures, one per class", file=sys.stderr)
    return None


def _prompts_by_class(prepared: PreparedRun) -> Mapping[str, str]:
    """For the first committed subject of each class: its adapter's name and its last prompt."""
    from farm.adapters.registry import Registry

    registry = Registry(prepared.store)
    chosen: dict[str, tuple[str, str]] = {}
    for assignment in prepared.assignments:
        subject = assignment.spec.subject
        namespace, name = assignment.names[0]
        if subject.class_noun not in chosen and registry.resolve(namespace, name) is not None:
            chosen[subject.class_noun] = (name, subject.sample_prompts[-1])
    return dict(chosen.values())


def _serve_line(store: str, base: str) -> str:
    """The command that serves the demo's store, as it works in the caller's own shell."""
    called = Path(sys.argv[0])
    found = shutil.which("farm")
    is_on_path = found is not None and Path(found).resolve() == called.resolve()
    program = str(called) if called.name == "farm" and not is_on_path else "farm"
    options = [] if base == "embedded" else ["--base", base]
    return shlex.join([program, "serve", "--store", store, *options])


def write_demo_manifest(
    out: Path, num_subjects: int, steps: int, *, nouns: Sequence[str] | None = None
) -> Path:
    """Draw the photos of the subjects, of all classes or of some, and write a manifest for them.

    Drawn again they are the same, byte for byte, so that a second demo finds all adapters.
    """
    import yaml

    from farm.base.embedded.world import CLASS_NOUNS, render_subject

    pair = ("cat", "mushroom")
    nouns = nouns or [*pair, *(noun for noun in CLASS_NOUNS if noun not in pair)]
    subjects = []
    for number in range(num_subjects):
        noun = nouns[number % len(nouns)]
        name = f"{noun}-{number + 1:02d}".replace(" ", "-")
        folder = out / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for index, photo in enumerate(render_subject(1000 + number, 5, class_noun=noun)):
            photo.picture.save(folder / f"{index}.png")
        place = PLACES[number % len(PLACES)]
        prompts = [prompt.replace("{place}", place) for prompt in SAMPLE_PROMPTS]
        subjects.append(
            {
                "id": name,
                "class_noun": noun,
                "photos": f"photos/{name}",
                "sample_prompts": prompts,
            }
        )
    manifest = out / "manifest.yaml"
    body = {"version": 1, "defaults": {"recipe": {**RECIPE, "steps": steps}}, "subjects": subjects}
    manifest.write_text(yaml.safe_dump(body, sort_keys=False))
    return manifest
