"""``farm demo``: subjects drawn from nothing, trained through the whole path, shown.

Owns the demo's manifest: its subjects are drawn by the embedded base's own world, the article's
pair first (one particular cat and one decorative mushroom). Everything else is ``farm run``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

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
    """Draw subjects, train an adapter for each, and show the pictures.

    Needs nothing, and minutes on two cores. Run again, it finds everything done.
    """
    from farm.cli.run import finish, prepare, run_prepared, show_plan
    from farm.intake.scoring import WHOLE_CARD, ScoringSettings
    from farm.quality.judge import QualityJudge
    from farm.training.run_request import RunRequest

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
    page = finish(prepared, summary, write_report=True, json=json)
    if not json:
        typer.echo(f"photos: {out / 'photos'}")
        if page:
            typer.echo(f"open {page} in a browser to see what was learned")
        typer.echo(f"took {time.monotonic() - began:.0f} s")
    raise typer.Exit(summary.exit_code)


def write_demo_manifest(
    out: Path, num_subjects: int, steps: int, *, nouns: Sequence[str] | None = None
) -> Path:
    """Draw the photos of the subjects, of all classes or of some, and write a manifest for them.

    Drawn again they are the same, byte for byte, so that a second demo finds all adapters.
    """
    import yaml

    from farm.base.embedded.world import CLASS_NOUNS, draw_subject

    pair = ("cat", "mushroom")
    nouns = nouns or [*pair, *(noun for noun in CLASS_NOUNS if noun not in pair)]
    subjects = []
    for number in range(num_subjects):
        noun = nouns[number % len(nouns)]
        name = f"{noun}-{number + 1:02d}".replace(" ", "-")
        folder = out / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for index, photo in enumerate(draw_subject(1000 + number, 5, class_noun=noun)):
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
