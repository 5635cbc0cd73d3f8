"""``farm demo``: train rendered subjects end to end, serve their adapters and show the images.

Owns the manifest of the demo, whose subjects are rendered in the world of the embedded base, the
article's pair first (one particular cat and one decorative mushroom), and the choice of the images
that its endpoint generates. Everything else is ``farm run`` and ``farm serve``.
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

from farm.cli.execute import finish, prepare, run_prepared, run_request, show_plan
from farm.cli.options import BaseOption, InProcessOption, JsonOption, RunOptions
from farm.cli.views.output import note, say
from farm.errors import FarmError

if TYPE_CHECKING:
    from farm.training.run.request import PreparedRun

__all__ = ["register", "write_demo_manifest"]

STEPS = 400
RECIPE = {
    "num_prior_images": 32,
    "crops_per_photo": 2,
    # 1 slows learning on a base this small; lower values let the classes drift more
    "prior_weight": 0.5,
    "checkpoint_every": 100,
}
"""Short enough for minutes on two cores; ``jobs/`` has recipes for real work."""
SAMPLE_PROMPTS = ("a photo of [V] {class_noun}", "a photo of [V] {class_noun} {place}")
SEED = 7
"""Seed of the images that the endpoint generates."""
PLACES = ("in space", "in the snow", "on the beach", "in the forest")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for photos, store and report.")] = Path(
        "demo"
    ),
    subjects: Annotated[
        int, typer.Option("--subjects", min=2, max=200, help="Number of subjects to render.")
    ] = 16,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Training steps per subject.")
    ] = STEPS,
    base: BaseOption = "embedded",
    in_process: InProcessOption = False,
    json: JsonOption = False,
) -> None:
    """Render subjects, train an adapter for each, serve them all, and show the images.

    Needs no photos, GPU or network, and takes minutes on two cores. Run again, it reuses what is
    done.
    """
    from dataclasses import replace

    from farm.intake.scoring import WHOLE_CARD, ScoringSettings
    from farm.local_files import check_folder, writing

    began = time.monotonic()
    check_folder(out)
    with writing(out):
        manifest = write_demo_manifest(out, subjects, steps)
    note(f"rendered {subjects} subjects into {out / 'photos'}")
    options = RunOptions(store=out / "store", base=base, in_process=in_process)
    request = run_request(str(manifest), options)
    prepared = prepare(replace(request, scoring=ScoringSettings(share=WHOLE_CARD)))
    show_plan(prepared)
    if prepared.plan is not None:
        note("then an endpoint on the adapters starts and generates an image per class")
    summary = run_prepared(prepared, plain=json)
    failure = _serve_and_keep(prepared)
    page = finish(prepared, summary, report=True, json=json)
    if not json:
        say(f"photos: {out / 'photos'}")
        if page:
            say(f"open {page} in a browser to see the results")
        say(f"took {time.monotonic() - began:.0f} s")
    if failure is not None:  # the adapters and the report exist, only these images are missing
        raise failure
    if not json:
        say("generate more images in a browser at http://127.0.0.1:8000 with:")
        say(_serve_line(request.store, base))
    raise typer.Exit(summary.exit_code)


def _serve_and_keep(prepared: PreparedRun) -> FarmError | None:
    """Generate one image per class through an endpoint, and keep them for the report, unless an
    earlier demo did.

    Returns:
        The error that prevented it, else None.
    """
    from farm.cli.temporary_endpoint import temporary_endpoint
    from farm.quality.report.served import keep_served, kept_names

    prompts = _prompts_by_class(prepared)
    if not prompts:
        return None
    if kept_names(prepared.store, prepared.run_id) == set(prompts):
        note("the endpoint's images of an earlier demo are kept")
        return None
    note("starting the endpoint on the store of the demo …")
    try:
        with temporary_endpoint(prepared.store.url, ("--base", prepared.request.base)) as endpoint:
            pictures = endpoint.generate_all(prompts, seed=SEED)
        keep_served(prepared.store, prepared.run_id, pictures)
    except FarmError as error:
        return error
    note(f"the endpoint generated {len(pictures)} images, one per class")
    return None


def _prompts_by_class(prepared: PreparedRun) -> Mapping[str, str]:
    """The adapter name and last prompt of the first subject of each class whose adapter is
    committed and not revoked."""
    from farm.adapters.registry import Registry

    registry = Registry(prepared.store)
    chosen: dict[str, tuple[str, str]] = {}
    for assignment in prepared.jobs.assignments():
        subject = assignment.spec.subject
        namespace, name = assignment.names[0]
        if subject.class_noun in chosen or f"{namespace}/{name}" in prepared.revoked:
            continue
        if registry.resolve(namespace, name) is not None:
            chosen[subject.class_noun] = (name, subject.sample_prompts[-1])
    return dict(chosen.values())


def _serve_line(store: str, base: str) -> str:
    """The command that serves the store of the demo, as it works in the caller's shell."""
    called = Path(sys.argv[0])
    found = shutil.which("farm")
    is_on_path = found is not None and Path(found).resolve() == called.resolve()
    program = str(called) if called.name == "farm" and not is_on_path else "farm"
    options = [] if base == "embedded" else ["--base", base]
    return shlex.join([program, "serve", "--store", store, *options])


def write_demo_manifest(
    out: Path, num_subjects: int, steps: int, *, nouns: Sequence[str] | None = None
) -> Path:
    """Render photos of subjects of all classes, or of some, and write a manifest for them.

    Rendering is reproducible byte for byte, so a second demo finds all adapters committed.
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
