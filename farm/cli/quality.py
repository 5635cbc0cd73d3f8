"""``farm report``, ``farm score`` and ``farm study``: what was learned, in words and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

Json = Annotated[bool, typer.Option("--json", help="One JSON document as the last line.")]
BaseName = Annotated[str, typer.Option("--base", help="Name, folder, URL or hub id of the base.")]
StoreUrl = Annotated[str, typer.Option("--store", help="The store: a folder or any fsspec URL.")]
ScorerName = Annotated[
    str | None, typer.Option("--scorer", help="A CLIP folder or hub id; embedded by itself.")
]
DinoName = Annotated[
    str | None, typer.Option("--dino", help="A DINO or DINOv2 folder or hub id, besides.")
]
StudyFolder = Annotated[Path, typer.Option("--out", help="Folder for pictures, plots and tables.")]

study = typer.Typer(no_args_is_help=True, help="Measure the article's claims anew.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("report")(report)
    app.command("score")(score)
    app.add_typer(study, name="study")


def report(
    run: Annotated[str | None, typer.Argument(help="The run's id; the latest by default.")] = None,
    store: StoreUrl = "work",
    out: Annotated[Path | None, typer.Option("--out", help="The HTML file to write.")] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="Dollars for an hour of one device.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track", help="Log to tensorboard (the default), wandb, mlflow, or none; may repeat."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a run's report: one HTML page with pictures, verdicts, costs and failures."""
    from farm.cli.output import print_json
    from farm.cli.runs import known_run
    from farm.quality.report.collect import report_run
    from farm.storage import Store

    opened = Store(store)
    trackers = None if track is None else tuple(name for name in track if name != "none")
    summary = report_run(opened, known_run(opened, run), out=out, price=price, trackers=trackers)
    if json:
        print_json(summary)
    else:
        typer.echo(summary["report"])


def score(
    names: Annotated[list[str], typer.Argument(help="Adapters: name, namespace/name or job key.")],
    store: StoreUrl = "work",
    base: BaseName = "embedded",
    scorer: ScorerName = None,
    dino: DinoName = None,
    photos: Annotated[
        Path | None, typer.Option("--photos", help="Folder with one folder of photos per name.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="The paper's whole protocol, 232 pictures each.")
    ] = False,
    device: Annotated[str, typer.Option("--device")] = "cpu",
    json: Json = False,
) -> None:
    """Score committed adapters anew, more carefully than training's own budget allows."""
    from farm.cli.output import print_json, print_table
    from farm.quality.rescore import score_named
    from farm.storage import Store

    cards = score_named(
        Store(store), names, base_name=base, scorer_name=scorer, dino_name=dino,
        photos_folder=photos, full=full, device=device,
    )  # fmt: skip
    if json:
        print_json(cards)
        return
    rows = [
        (name, card["verdict"]["label"], *(_shown(card["scores"].get(key)) for key in _COLUMNS))
        for name, card in cards.items()
    ]
    print_table(("adapter", "verdict", *_COLUMNS), rows)


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
    base: BaseName = "embedded",
    subjects: Annotated[int, typer.Option(help="Drawn individuals, each in one pose.")] = 12,
    seeds: Annotated[int, typer.Option(help="Trainings of each subject and arm.")] = 2,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 300,
    json: Json = False,
) -> None:
    """With and without prior preservation: what becomes of the class when one member is learned."""
    from farm.cli.output import print_json
    from farm.quality.study.prior import PriorStudy, run_prior_study

    plan = PriorStudy(num_subjects=subjects, num_seeds=seeds, steps=steps)
    result = run_prior_study(base, plan, out, say=_say)
    if json:
        print_json(result)
    else:
        typer.echo(str(out / "README.md"))


@study.command("article")
def study_article(
    out: StudyFolder = Path("docs/study/article"),
    base: BaseName = "embedded",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 500,
    json: Json = False,
) -> None:
    """The article's own run: one particular cat and one decorative mushroom, step by step."""
    from farm.cli.output import print_json
    from farm.quality.study.article import ArticleStudy, run_article_study

    result = run_article_study(base, ArticleStudy(steps=steps), out, say=_say)
    if json:
        print_json(result)
    else:
        typer.echo(str(out / "README.md"))


def _say(text: str) -> None:
    typer.echo(text, err=True)
