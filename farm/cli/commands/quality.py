"""``farm report``, ``farm score`` and ``farm study``: measure and show what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farm.cli.chosen_run import chosen_run
from farm.cli.existing_store import existing_store
from farm.cli.options import (
    BaseOption,
    DeviceOption,
    JsonOption,
    NamesArgument,
    NamesOption,
    OptionalRun,
    StoreOption,
)
from farm.cli.views.output import note, note_verdicts, print_json, print_table, say

__all__ = ["register"]

StudyFolder = Annotated[Path, typer.Option("--out", help="Folder for images, plots and tables.")]

study = typer.Typer(no_args_is_help=True, help="Measure the claims of the article.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("report")(report)
    app.command("score")(score)
    app.add_typer(study, name="study")


def report(
    run: OptionalRun = None,
    store: StoreOption = "work",
    out: Annotated[Path | None, typer.Option("--out", help="HTML file to write.")] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="Price of one device hour in dollars.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track", help="Log to tensorboard (default), wandb, mlflow or none; may repeat."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the report of a run: one HTML page with images, verdicts, costs and failures."""
    from farm.quality.report.collect import report_run

    opened = existing_store(store)
    trackers = None if track is None else tuple(name for name in track if name != "none")
    summary = report_run(opened, chosen_run(opened, run), out=out, price=price, trackers=trackers)
    if json:
        print_json(summary)
    else:
        say(str(summary["report"]))


def score(
    names: NamesArgument = None,
    name: NamesOption = None,
    store: StoreOption = "work",
    base: BaseOption = "embedded",
    scorer: Annotated[
        str | None,
        typer.Option("--scorer", help="CLIP folder or hub id; the embedded scorer by default."),
    ] = None,
    dino: Annotated[
        str | None,
        typer.Option("--dino", help="DINO or DINOv2 that also scores them: a folder or a hub id."),
    ] = None,
    photos: Annotated[
        Path | None, typer.Option("--photos", help="Folder with a folder of photos per name.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Use the paper's complete protocol, 232 images per adapter."),
    ] = False,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Score committed adapters with more images than the budget of training allows.

    A job key names an adapter too.
    """
    from farm.errors import UserError

    named = list(dict.fromkeys([*(names or ()), *(name or ())]))
    if not named:
        raise UserError("no adapter is named", "write `farm score NAME`; `farm list` lists them")
    from farm.quality.report.bars import SCORE_TITLES
    from farm.quality.rescore import score_named

    opened = existing_store(store)
    each = "232 images" if full else "dozens of images"
    adapters = f"{len(named):,} adapter{'' if len(named) == 1 else 's'}"
    note(f"scoring {adapters}: {each} for each, which takes minutes …")
    cards = score_named(
        opened, named, base_name=base, scorer_name=scorer, dino_name=dino,
        photos_folder=photos, full=full, device=device,
    )  # fmt: skip
    if json:
        print_json(cards)
        return
    rows = [
        (adapter, card["verdict"]["label"], *(_shown(card["scores"].get(key)) for key in _COLUMNS))
        for adapter, card in cards.items()
    ]
    print_table(("adapter", "verdict", *(SCORE_TITLES[key] for key in _COLUMNS)), rows)
    note_verdicts([base])


_COLUMNS = ("clip_i", "dino", "clip_t", "pres", "div", "drift", "copying")


def _shown(value: dict[str, object] | None) -> str:
    if not value:
        return "–"
    if "mean" not in value:
        return str(value.get("missing", "–"))
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


@study.command("prior")
def study_prior(
    out: StudyFolder = Path("docs/study/prior"),
    base: BaseOption = "embedded",
    subjects: Annotated[
        int, typer.Option("--subjects", help="Rendered individuals, each in one pose.")
    ] = 12,
    seeds: Annotated[int, typer.Option("--seeds", help="Trainings per subject and variant.")] = 2,
    steps: Annotated[int, typer.Option("--steps", help="Training steps.")] = 300,
    json: JsonOption = False,
) -> None:
    """Compare training with and without prior preservation: how far the class drifts."""
    from farm.quality.study.prior import PriorStudy, run_prior_study

    plan = PriorStudy(num_subjects=subjects, num_seeds=seeds, steps=steps)
    result = run_prior_study(base, plan, out, say=note)
    if json:
        print_json(result)
    else:
        say(str(out / "README.md"))


@study.command("article")
def study_article(
    out: StudyFolder = Path("docs/study/article"),
    base: BaseOption = "embedded",
    steps: Annotated[int, typer.Option("--steps", help="Training steps.")] = 500,
    json: JsonOption = False,
) -> None:
    """Repeat the run of the article: one particular cat and one decorative mushroom."""
    from farm.quality.study.article import ArticleStudy, run_article_study

    result = run_article_study(base, ArticleStudy(steps=steps), out, say=note)
    if json:
        print_json(result)
    else:
        say(str(out / "README.md"))
