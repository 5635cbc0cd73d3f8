"""Preparing and executing a run for the commands that train: ``plan``, ``run`` and ``demo``.

Owns the way from options to a request, the display meanwhile, Ctrl-C, and what is printed at the
end. Everything heavy is imported when a command runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from farm.cli.options import PlanOptions, RunOptions, quantization_of
from farm.cli.views.output import ask, note, note_verdicts, print_json, print_rich, say

if TYPE_CHECKING:
    from farm.training.plan.hardware import Hardware
    from farm.training.run.request import PreparedRun, RunRequest, RunSummary

__all__ = [
    "check_recipe",
    "confirm",
    "finish",
    "hardware_of",
    "calibrate_device",
    "plan_request",
    "prepare",
    "run_prepared",
    "run_request",
    "show_plan",
    "show_warnings",
    "stop_on_signals",
    "write_report",
]

SHOWN_WARNINGS = 10
SIGTERM_ECHO_S = 5.0
"""How long a second SIGTERM counts as an echo of the first one."""


# -- from options to a request -------------------------------------------------------------------


def plan_request(manifest: str, options: PlanOptions, *, address: str | None = None) -> RunRequest:
    """The request of a run with the default settings of execution.

    Raises:
        ManifestError: for recipe fields that no manifest could correct.
        UserError: as ``hardware_of``.
    """
    check_recipe(options.recipe)
    from farm.quality.judge import QualityJudge
    from farm.training.run.request import RunRequest

    return RunRequest(
        manifest,
        os.fspath(options.store),
        base=os.fspath(options.base),
        revision=options.revision,
        quantization=quantization_of(options.quantize),
        recipe=options.recipe,
        hardware=hardware_of(options, address),
        slots=options.slots,
        lanes=options.lanes,
        gpu_fraction=options.gpu_fraction,
        checkpointing=options.checkpointing,
        make_judge=QualityJudge,
        skip_faulty=options.skip_faulty,
    )


def run_request(manifest: str, options: RunOptions) -> RunRequest:
    """The request of a run with all its options.

    Raises:
        UserError: as ``hardware_of``.
    """
    from dataclasses import replace

    from farm.intake.scoring import ScoringSettings
    from farm.training.dispatch.messages import DispatchSettings
    from farm.training.lane.settings import SampleSettings

    request = plan_request(manifest, options, address=options.address)
    return replace(
        request,
        executor="local" if options.in_process else "ray",
        address=options.address,
        compile=options.compile,
        samples=SampleSettings(steps=options.sample_steps, per_prompt=options.samples),
        dispatch=DispatchSettings(max_failures=options.max_failures),
        make_judge=request.make_judge if options.cards else None,
        scoring=ScoringSettings(options.scorer, options.dino, options.scoring_share),
        take_over=options.take_over,
        node_timeout_s=options.node_timeout,
    )


def check_recipe(
    recipe: Mapping[str, Any], name: str = "--set", source: str = "the command line"
) -> None:
    """Validate ``--set`` before anything is loaded or read.

    Args:
        name: of the option or argument, for the message.
        source: where it was given, for the faults.

    Raises:
        ManifestError: with the fault of each invalid field.
    """
    from farm.errors import ManifestError
    from farm.intake.layers import command_line_faults

    if faults := command_line_faults(recipe, source):
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        message = f"{name} has invalid recipe fields: {faults[0].field}: {faults[0].message}{more}"
        raise ManifestError(message, faults[0].remedy if not more else "correct them", faults)


def hardware_of(options: PlanOptions, address: str | None = None) -> Hardware:
    """The hardware that the options describe; otherwise the cluster's, or this machine's.

    Raises:
        UserError: if the memory of an unknown GPU is not given, or the cluster cannot be reached
            or has no nodes for lanes.
    """
    from dataclasses import replace

    from farm.errors import UserError
    from farm.training.plan.hardware import Hardware, memory_of
    from farm.training.run.prepare import this_machine

    gpus, nodes = options.gpus, options.nodes or 1
    if address is not None and options.gpu is None and options.cpus is None:
        from farm.training.cluster.hardware import read_hardware

        return read_hardware(
            address,
            gpu_memory_gib=options.gpu_memory,
            nodes=options.nodes,
            price=options.price,
        )
    if options.gpu is None:
        machine = this_machine()
        return replace(
            machine,
            num_nodes=nodes,
            gpus_per_node=machine.gpus_per_node if gpus == 1 else gpus,
            cpus_per_node=options.cpus or machine.cpus_per_node,
            dollars_per_gpu_hour=options.price,
        )
    gib = options.gpu_memory or memory_of(options.gpu)
    if gib is None:
        raise UserError(f"the memory of {options.gpu!r} is not known", "give it with --gpu-memory")
    cpus = options.cpus or 8.0 * gpus
    return Hardware(options.gpu, int(gib * 2**30), gpus, cpus, nodes, options.price)


def calibrate_device(options: PlanOptions) -> None:
    """Measure this machine's device with the chosen base, and keep the result for later plans."""
    import torch

    from farm.base.loading import load_base, training_dtype
    from farm.local_files import check_folder
    from farm.training.plan.calibration import calibrations_folder, save_calibration
    from farm.training.slots.calibrate import calibrate

    check_folder(calibrations_folder())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_base(
        os.fspath(options.base),
        device=device,
        dtype=training_dtype(device),
        revision=options.revision,
        quantization=quantization_of(options.quantize),
    )
    found = calibrate(base, say=note)
    note(f"calibration of {found.hardware}: {save_calibration(found)}")


# -- before the run ------------------------------------------------------------------------------


def prepare(request: RunRequest, *, only_shown: bool = False) -> PreparedRun:
    """Read the base's facts and the photos, with progress on stderr; see ``prepare_run``."""
    from farm.cli.views.progress import counting, fetching, stages
    from farm.training.run.prepare import prepare_run

    with stages() as shown:
        photos, fetched = counting(shown, "reading photos"), fetching(shown, request.base)
        return prepare_run(request, progress=photos, fetched=fetched, only_shown=only_shown)


def show_plan(prepared: PreparedRun) -> None:
    """Show warnings and the plan on stderr."""
    from farm.cli.views.plan import plan_table

    show_warnings(prepared)
    if prepared.plan is not None:
        print_rich(plan_table(prepared), stderr=True)


def show_warnings(prepared: PreparedRun) -> None:
    """Show on stderr what may be wrong with a manifest, or not as its reader expects."""
    from farm.adapters.registry import NEW_VERSION
    from farm.errors import FarmError
    from farm.text.visible import visible
    from farm.training.run.earlier import no_longer_named

    for fault in prepared.warnings[:SHOWN_WARNINGS]:
        note(f"warning: {visible(str(fault))}")
    more = len(prepared.warnings) - SHOWN_WARNINGS
    if more > 0:
        note(f"… and {more:,} more warnings: farm check shows them")
    if prepared.revoked:
        some = ", ".join(map(visible, prepared.revoked[:SHOWN_WARNINGS]))
        rest = " and others" if len(prepared.revoked) > SHOWN_WARNINGS else ""
        note(f"warning: found, but revoked: {some}{rest}; {NEW_VERSION}")
    with suppress(FarmError):  # a damaged earlier run stops no other
        if kept := no_longer_named(prepared):
            note(_kept_line(kept))


def _kept_line(names: Sequence[str]) -> str:
    from farm.text.listed import listed
    from farm.text.visible import visible

    return (
        "note: no longer in the manifest, but still in the store and served: "
        f"{visible(listed(names, SHOWN_WARNINGS))}; `farm revoke NAME` withdraws one"
    )


def confirm(prepared: PreparedRun) -> None:
    """Ask on a terminal whether to start a run that has work to do; "no" exits with 0."""
    if prepared.plan is None or not sys.stdin.isatty():
        return
    if not ask("Start?", default=True):
        raise typer.Exit(0)


# -- the run -------------------------------------------------------------------------------------


def run_prepared(prepared: PreparedRun, *, plain: bool = False) -> RunSummary:
    """Execute with a display; Ctrl-C stops cleanly, a second Ctrl-C at once."""
    from farm.cli.views.run import run_view
    from farm.training.execute import execute_run

    with stop_on_signals() as (stop, arm), run_view(plain=plain) as view:
        return execute_run(prepared, view=view, stop=stop, arm=arm)


@contextmanager
def stop_on_signals() -> Iterator[tuple[threading.Event, Callable[[], None] | None]]:
    """Turn SIGINT and SIGTERM into an event for as long as the block lasts.

    Yields:
        The event, and a function that installs the handlers again after another library replaced
        them. Outside the main thread, which alone receives signals, there is none to install.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop, None
        return
    first_at, terminal = 0.0, _copy_of_stderr()

    def on_signal(number: int, frame: object) -> None:
        nonlocal first_at
        if stop.is_set():
            # a supervisor forwards the SIGTERM that its whole process group has also received
            if number == signal.SIGTERM and time.monotonic() - first_at < SIGTERM_ECHO_S:
                return
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        first_at = time.monotonic()
        stop.set()
        _note_on(terminal, "stopping: running jobs are being saved …")

    def arm() -> None:
        signal.signal(signal.SIGINT, on_signal)
        signal.signal(signal.SIGTERM, on_signal)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        arm()
        yield stop, arm
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
        if terminal is not None:
            os.close(terminal)


def _copy_of_stderr() -> int | None:
    """A copy of stderr's descriptor; None if it is closed."""
    with suppress(OSError):
        return os.dup(2)
    return None


def _note_on(terminal: int | None, text: str) -> None:
    """Note a line, also while stderr is silenced because a library starts that writes to it.

    Args:
        terminal: a copy of the descriptor that stderr had before.
    """
    with suppress(OSError):
        if terminal is not None and not os.path.sameopenfile(2, terminal):
            os.write(terminal, f"{text}\n".encode())
            return
    note(text)


# -- after the run -------------------------------------------------------------------------------


def finish(prepared: PreparedRun, summary: RunSummary, *, report: bool, json: bool) -> str | None:
    """Print the summary, as text or as one JSON line.

    Returns:
        The path of the report page, if one was written.
    """
    from farm.cli.views.run import summary_lines

    facts = None
    if report:
        facts = write_report(prepared, lambda text: note(f"warning: {text}"))
    page = str(facts["report"]) if facts else None
    if json:
        print_json(summary.to_json())
        return page
    for line in summary_lines(summary, prepared.store.url):
        say(line)
    if page is not None:
        say(f"report: {page}")
    if facts and facts["judged"]:
        note_verdicts([prepared.base.name])
    return page


def write_report(prepared: PreparedRun, warn: Callable[[str], None]) -> Mapping[str, object] | None:
    """Write the report page; a page that cannot be written is a warning and fails no run.

    Returns:
        What ``report_run`` does.
    """
    from farm.errors import FarmError

    try:
        from farm.quality.report.collect import report_run

        return report_run(prepared.store, prepared.run_id)
    except (FarmError, OSError, ImportError) as error:
        warn(f"no report could be written: {error}")
        return None
