"""``farm.check``, ``farm.plan`` and ``farm.run``: manifests from Python.

Owns what differs from the commands of the same names: results are returned instead of printed, and
events of a run go to the ``farm`` logger.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from farm.api.keywords import Location, check_location, with_keywords
from farm.cli.execute import check_recipe, run_request, stop_on_signals, write_report
from farm.cli.options import RunOptions
from farm.cli.private_hosts import private_hosts
from farm.intake.check import CheckReport, check_manifest
from farm.storage import Store
from farm.training.dispatch.messages import Notice, Snapshot
from farm.training.execute import execute_run
from farm.training.run.check import read_for_check
from farm.training.run.earlier import refuse_driven
from farm.training.run.prepare import prepare_run
from farm.training.run.request import PreparedRun, RunRequest, RunSummary

__all__ = ["check", "plan", "run"]

AS_ARGUMENT = ("the argument `recipe`", "the Python call")
"""How faults of recipe fields name what gave them."""

_log = logging.getLogger("farm")


def check(
    manifest: Location,
    *,
    resolution: int | None = None,
    base: Location = "embedded",
    recipe: Mapping[str, Any] | None = None,
    workers: int | None = None,
    allow_private_hosts: bool = False,
) -> CheckReport:
    """Find every fault of a manifest and its photos, as ``farm check`` does.

    Needs no GPU and writes nothing.

    Args:
        manifest: a manifest or a folder of photo folders; a path or a URL.
        resolution: side of the training crops in pixels, for recipes that set none.
        base: base model whose tokenizer reads the prompts.
        recipe: fields for all subjects, as of ``farm.run``: ``{"steps": 300}``.
        workers: threads; one per CPU core by default.
        allow_private_hosts: let photo URLs lead to private, loopback and link-local addresses.

    Returns:
        The report: ``errors``, ``warnings``, ``good_subjects``, ``num_photos``. Faults do not
        raise; ``report.raise_for_errors()`` does.

    Raises:
        ManifestError: if the manifest cannot be read at all, or a field of ``recipe`` is invalid.
        BaseModelError: if the base does not exist.
    """
    check_location("the manifest", manifest)
    check_location("base", base)
    check_recipe(recipe or {}, *AS_ARGUMENT)
    with private_hosts(allow_private_hosts):
        read = read_for_check(os.fspath(manifest), os.fspath(base), recipe)
        return check_manifest(read, workers=workers, resolution_px=resolution)


@with_keywords(RunOptions)
def plan(manifest: Location, options: RunOptions) -> PreparedRun:
    """Show how a manifest would be trained. Trains nothing and writes nothing.

    Takes the options of ``farm.run``, so that the same keywords can be planned first.

    Returns:
        The prepared run: ``run_id``, ``num_to_train``, ``committed``, and ``plan`` with lanes,
        slots, expected time and cost; ``plan`` is None if nothing is left to train.

    Raises:
        ManifestError: if the manifest has faults, unless ``skip_faulty`` is set.
        PlanError: if the hardware cannot run it.
        UserError: if an option or the base is invalid.
    """
    with private_hosts(options.allow_private_hosts):
        return prepare_run(_request(manifest, options), only_shown=True)


@with_keywords(RunOptions)
def run(manifest: Location, options: RunOptions) -> RunSummary:
    """Train every subject of a manifest that has no adapter yet.

    Call it again to resume an interrupted run; it returns at once if all adapters are committed.
    The events of the run are logged to the ``farm`` logger at level INFO.

    Returns:
        The summary: ``run``, ``committed``, ``reused``, ``failed``, ``failures``. Failed subjects
        do not raise.

    Raises:
        ManifestError: if the manifest has faults, unless ``skip_faulty`` is set.
        PlanError: if the hardware cannot run it.
        UserError: if an option or the base is invalid, or another driver has this run.
        LaneLost: if the lanes cannot be kept alive.
        Interrupted: after Ctrl-C, once the running jobs are saved.
    """
    with private_hosts(options.allow_private_hosts):
        request = _request(manifest, options)
        Store(request.store).check_writable()
        refuse_driven(request)
        prepared = prepare_run(request)
        with stop_on_signals() as (stop, arm):
            summary = execute_run(prepared, view=_LogView(), stop=stop, arm=arm)
    if options.report:
        write_report(prepared, _log.warning)
    return summary


def _request(manifest: Location, options: RunOptions) -> RunRequest:
    check_recipe(options.recipe, *AS_ARGUMENT)
    return run_request(os.fspath(manifest), options)


class _LogView:
    """A run's events as log records."""

    def show(self, snapshot: Snapshot, news: Sequence[Notice]) -> None:
        for notice in news:
            _log.log(logging.WARNING if notice.is_bad else logging.INFO, "%s", notice.text)
