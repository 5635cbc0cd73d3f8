"""Builds a run's report from the store: one page, or an overview and parts of a large run.

Owns what is read once for all subjects, and where the pages are stored. Only the subjects of one
part are in memory, so that the report of a large run needs little of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from farm.adapters.registry import Registry
from farm.local_files import check_file, write_file
from farm.quality.report.page import Part, part_name, render, render_overview, render_part
from farm.quality.report.served import read_served
from farm.quality.report.subject import best_of
from farm.quality.report.subject_reader import SubjectReader
from farm.quality.report.thumbs import budget_for
from farm.quality.report.timeline import (
    Timeline,
    device_seconds,
    read_timeline,
    run_seconds,
)
from farm.quality.report.trackers import track_run
from farm.quality.report.view import UNJUDGED, ReportImage, RunView, SubjectRow, SubjectView
from farm.storage import Store
from farm.training.dispatch.ledger import Status
from farm.training.dispatch.run_jobs import RunJobs
from farm.training.run.failures import revoked_names
from farm.training.run.files import read_settings
from farm.training.run.job_files import read_run_jobs
from farm.version import __version__

__all__ = ["collect", "report_run"]

FIRST = "report.html"
READERS = 8
ONE_PAGE = 1200
"""Subjects on one page; the report of a larger run is a folder of pages."""
PART = 200
"""Subjects on one page of a larger run: about a megabyte."""


def report_run(
    store: Store,
    run_id: str,
    *,
    out: Path | None = None,
    price: float | None = None,
    trackers: Sequence[str] | None = None,
    one_page: int = ONE_PAGE,
    part: int = PART,
) -> dict[str, Any]:
    """Write ``runs/<run_id>/report.html`` in the store, and a copy to ``out``. Of a run with many
    subjects, it is an overview whose links lead to the pages in ``report-<run_id>/`` beside it.

    Args:
        price: dollars per hour of one device; None uses the run's own price, if it has one.
        trackers: names of trackers that also receive curves and scores; None means TensorBoard
            beside the run, if the store is a folder and the report is one page.
        one_page: most subjects of a report in one page.
        part: subjects on each further page of other reports.

    Returns:
        The location of the report, and the verdicts' counts.

    Raises:
        UserError: if there is no such run, or a tracker is unknown or not installed.
        OutputUnusable: if ``out`` cannot be written.
    """
    if out is not None:
        check_file(out)
    source = _Source.open(store, run_id, price)
    pages = _Pages(store, run_id, out)
    is_whole = len(source.jobs) <= one_page
    by_default = ("tensorboard",) if store.is_local and is_whole else ()
    tracking = _Tracking(by_default if trackers is None else trackers, store, source.run)
    if is_whole:
        run = source.whole()
        pages.write_first(render(run))
        tracking.log(run)
    else:
        run = _write_parts(source, pages, tracking, part)
    return {
        "run": run_id,
        "report": str(out) if out is not None else store.full_path(pages.first),
        "pages": pages.num_pages,
        "bytes": pages.num_bytes,
        "subjects": len(run.subjects),
        "committed": run.num_committed,
        "verdicts": {verdict.label: verdict.num for verdict in run.verdicts},
        "judged": sum(verdict.num for verdict in run.verdicts if verdict.label not in UNJUDGED),
        "seconds": round(run.seconds, 1),
        "utilisation": None if run.utilisation is None else round(run.utilisation, 4),
        "trackers": list(tracking.names),
    }


def collect(store: Store, run_id: str, *, price: float | None = None) -> RunView:
    """Read a run and all its subjects.

    Raises:
        UserError: if there is no such run.
    """
    return _Source.open(store, run_id, price).whole()


def _write_parts(source: _Source, pages: _Pages, tracking: _Tracking, size: int) -> RunView:
    """Write the parts, then the overview, whose view is returned: it has rows for subjects."""
    total, rows, best = len(source.jobs), list[SubjectRow](), list[SubjectView]()
    num_parts = -(-total // size)
    for number, subjects in enumerate(source.parts(size)):
        run = replace(source.run, subjects=subjects)
        last = len(rows) + len(subjects)
        part = Part(number, num_parts, len(rows), total, last, f"../{FIRST}")
        pages.write_part(number, render_part(run, part))
        tracking.log(run)
        rows += [SubjectRow.of(one, at) for at, one in enumerate(subjects, len(rows))]
        best = best_of([*best, *subjects])
    overview = replace(
        source.run,
        subjects=rows,
        highlights=best,
        served=source.served(),
        notes=source.reader.notes(),
    )

    def href(number: int) -> str:
        return f"{pages.folder}/{part_name(number // size)}#subject-{number}"

    links = {"folder": pages.folder, "size": size}
    pages.write_first(render_overview(overview, href, links))
    return overview


@dataclass
class _Source:
    """A run in the store."""

    store: Store
    jobs: RunJobs
    reader: SubjectReader
    run: RunView
    """Without subjects."""

    @classmethod
    def open(cls, store: Store, run_id: str, price: float | None) -> _Source:
        """Read everything except the subjects."""
        jobs = read_run_jobs(store, run_id)
        settings = read_settings(store, run_id)
        timeline = read_timeline(store, run_id, jobs.subjects(), settings.get("starts"))
        registry = Registry(store)
        revoked = revoked_names(registry.revoked_keys(), jobs)
        plan = settings.get("plan") or {}
        if price is None:
            hardware = (settings.get("request") or {}).get("hardware") or {}
            price = hardware.get("dollars_per_gpu_hour")
        run = RunView(
            run_id=run_id,
            base=str((settings.get("base") or {}).get("name") or "its base"),
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            seconds=run_seconds(settings, timeline),
            work_s=timeline.seconds,
            machine_s=timeline.machine_s,
            subjects=(),
            spans=timeline.spans,
            dollars=None if price is None else price * device_seconds(settings, timeline) / 3600,
            dollars_per_hour=price,
            device=str(plan.get("device") or "cpu"),
            rows_per_s=_rows_per_s(jobs, timeline),
            farm_version=__version__,
            revoked=[name for names in revoked.values() for name in names],
        )
        reader = SubjectReader(registry, budget_for(len(jobs)), timeline.jobs)
        return cls(store, jobs, reader, run)

    def parts(self, size: int) -> Iterator[list[SubjectView]]:
        """The subjects in the manifest's order, ``size`` at a time."""
        with ThreadPoolExecutor(READERS) as pool:
            assignments = self.jobs.assignments()
            while part := list(islice(assignments, size)):
                yield list(pool.map(self.reader.subject, part))

    def served(self) -> list[ReportImage]:
        """Images that an endpoint generated with the run's adapters."""
        return read_served(self.store, self.run.run_id, self.reader.budget.side_px)

    def whole(self) -> RunView:
        """The run with all its subjects."""
        subjects = [subject for part in self.parts(PART) for subject in part]
        served = self.served()
        return replace(self.run, subjects=subjects, served=served, notes=self.reader.notes())


def _rows_per_s(jobs: RunJobs, timeline: Timeline) -> float | None:
    columns = jobs.columns
    each = [
        recipe.instance_rows + (recipe.prior_rows if recipe.uses_prior else 0)
        for recipe in columns.recipes
    ]
    rows = 0
    for key, recipe in zip(columns.keys, columns.recipe_of, strict=True):
        job = timeline.jobs.get(key)
        if job is not None and job.status is Status.COMMITTED and not job.reused:
            rows += job.step * each[recipe]
    return rows / timeline.seconds if rows and timeline.seconds > 0 else None


class _Pages:
    """Writes the pages into the store and, if asked for, a copy elsewhere."""

    def __init__(self, store: Store, run_id: str, out: Path | None) -> None:
        self._store, self._out = store, out
        self.first = f"runs/{run_id}/{FIRST}"
        self.folder = f"report-{run_id}"
        self._parts = f"runs/{run_id}/{self.folder}"
        self.num_pages = self.num_bytes = 0

    def write_part(self, number: int, page: str) -> None:
        """Write one of the pages behind the overview."""
        self._write(f"{self._parts}/{part_name(number)}", page)
        if self._out is not None:
            # a quote of the user's would be escaped: only the page's own links look like this
            own = page.replace(f'href="../{FIRST}"', f'href="../{quote(self._out.name)}"')
            write_file(self._out.parent / self.folder / part_name(number), own.encode())

    def write_first(self, page: str) -> None:
        """Write the page that is opened first; it is written last."""
        self._write(self.first, page)
        if self._out is not None:
            write_file(self._out, page.encode())

    def _write(self, path: str, page: str) -> None:
        data = page.encode()
        self._store.write(path, data)
        self.num_pages += 1
        self.num_bytes += len(data)


class _Tracking:
    """Trackers that receive the subjects part by part."""

    def __init__(self, names: Sequence[str], store: Store, run: RunView) -> None:
        self.names = names
        if store.is_local:  # beside the run, or in the working folder for a remote store
            self._folder = Path(store.full_path(f"runs/{run.run_id}/tracking"))
        else:
            self._folder = Path("tracking") / run.run_id
        self.log(run)  # nothing yet: an unknown tracker is reported before the work

    def log(self, run: RunView) -> None:
        """Log the subjects of a view."""
        track_run(run, self.names, folder=self._folder)
