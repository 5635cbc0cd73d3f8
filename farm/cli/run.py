"""``farm plan | run | submit | status | logs | retry | cancel | export | demo``.

Owns the options and what is printed. Everything heavy is imported when a command runs.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.private_hosts import PrivateHostsOption

if TYPE_CHECKING:
    from farm.training.plan.hardware import Hardware
    from farm.training.run.request import PreparedRun, RunRequest, RunSummary

__all__ = ["finish", "prepare", "register", "run_prepared", "show_plan"]

SHOWN_WARNINGS = 10

ManifestArgument = Annotated[
    str, typer.Argument(help="A manifest or a folder of folders; a path or a URL.")
]
StoreOption = Annotated[str, typer.Option("--store", help="The store: a folder or fsspec URL.")]
BaseOption = Annotated[str, typer.Option("--base", help="embedded, a folder, a URL or a hub id.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Recipe field for all subjects, such as steps=300; may repeat."),
]
SlotsOption = Annotated[int | None, typer.Option(min=1, help="Slots per lane.")]
LanesOption = Annotated[int | None, typer.Option(min=1, help="Lanes per node.")]
FractionOption = Annotated[
    float | None, typer.Option("--gpu-fraction", min=0.01, max=1, help="Of a GPU, per lane.")
]
CheckpointingOption = Annotated[
    bool | None,
    typer.Option("--checkpointing/--no-checkpointing", help="Gradient checkpointing."),
]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", help="GPU of the cluster's nodes, such as A100.")
]
MemoryOption = Annotated[float | None, typer.Option("--gpu-memory", help="Of that GPU, in GiB.")]
GpusOption = Annotated[int, typer.Option("--gpus", min=1, help="GPUs per node.")]
NodesOption = Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes with lanes.")]
CpusOption = Annotated[float | None, typer.Option("--cpus", help="CPU cores per node.")]
PriceOption = Annotated[float | None, typer.Option(help="Dollars for one GPU hour.")]
SkipOption = Annotated[
    bool, typer.Option("--skip-faulty", help="Train the good subjects of a faulty manifest.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document as the last line.")]
AddressOption = Annotated[
    str | None,
    typer.Option(help="Ray cluster to run on, such as auto; by default one on this machine."),
]
SIGTERM_ECHO_S = 5.0
ScorerOption = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        envvar="FARM_SCORER",
        help="CLIP that scores the adapters: a folder or a hub id. Default: the embedded scorer "
        "for the embedded base, none for others.",
    ),
]
DinoOption = Annotated[
    str | None,
    typer.Option("--dino", envvar="FARM_DINO", help="DINO that scores them too."),
]
ShareOption = Annotated[
    float | None,
    typer.Option(
        "--scoring-share",
        envvar="FARM_SCORING_SHARE",
        min=0,
        help="Share of the training's cost that scoring may take; 0.12 by default.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    from farm.cli import demo, runs, submit

    app.command()(plan)
    app.command()(run)
    app.command()(demo.demo)
    submit.register(app)
    runs.register(app)


def plan(
    manifest: ManifestArgument,
    store: StoreOption = "work",
    base: BaseOption = "embedded",
    revision: RevisionOption = None,
    recipe: SetOption = None,
    slots: SlotsOption = None,
    lanes: LanesOption = None,
    gpu_fraction: FractionOption = None,
    checkpointing: CheckpointingOption = None,
    gpu: GpuOption = None,
    gpu_memory: MemoryOption = None,
    gpus: GpusOption = 1,
    nodes: NodesOption = None,
    cpus: CpusOption = None,
    price: PriceOption = None,
    skip_faulty: SkipOption = False,
    json: JsonOption = False,
    allow_private_hosts: PrivateHostsOption = False,
) -> None:
    """Show how a manifest would be trained, how long it takes and what it costs. Spends nothing."""
    from farm.cli.output import print_json, print_rich
    from farm.cli.run_view import plan_facts, plan_table
    from farm.quality.judge import QualityJudge
    from farm.training.run.request import RunRequest

    request = RunRequest(
        manifest,
        store,
        base=base,
        revision=revision,
        recipe=recipe_fields(recipe),
        slots=slots,
        lanes=lanes,
        gpu_fraction=gpu_fraction,
        checkpointing=checkpointing,
        hardware=hardware_of(gpu, gpu_memory, gpus, nodes, cpus, price),
        skip_faulty=skip_faulty,
        make_judge=QualityJudge,  # as `farm run` has it by default
    )
    prepared = prepare(request)
    if json:
        print_json(plan_facts(prepared))
    else:
        print_rich(plan_table(prepared))


def run(
    manifest: ManifestArgument,
    store: StoreOption = "work",
    base: BaseOption = "embedded",
    revision: RevisionOption = None,
    recipe: SetOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: AddressOption = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="One lane in this process, without Ray.")
    ] = False,
    slots: SlotsOption = None,
    lanes: LanesOption = None,
    gpu_fraction: FractionOption = None,
    checkpointing: CheckpointingOption = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the denoiser.")] = False,
    gpu: GpuOption = None,
    gpu_memory: MemoryOption = None,
    gpus: GpusOption = 1,
    nodes: NodesOption = None,
    cpus: CpusOption = None,
    price: PriceOption = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Pictures of each sample prompt; 0 draws none.")
    ] = 1,
    sample_steps: Annotated[int, typer.Option(min=1, help="Denoising steps of samples.")] = 25,
    cards: Annotated[
        bool, typer.Option("--cards/--no-cards", help="Make a quality card of each adapter.")
    ] = True,
    scorer: ScorerOption = None,
    dino: DinoOption = None,
    scoring_share: ShareOption = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write the report page at the end.")
    ] = True,
    max_failures: Annotated[int, typer.Option(min=1, help="Attempts before quarantine.")] = 3,
    skip_faulty: SkipOption = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the run from a driver that seems alive.")
    ] = False,
    node_timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds until nodes that do not come are reported.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live table.")] = False,
    json: JsonOption = False,
    allow_private_hosts: PrivateHostsOption = False,
) -> None:
    """Train every subject of a manifest that has no adapter yet.

    The same command again goes on where the last one was interrupted, and costs nothing once all
    adapters are committed.

    Examples:

      farm run jobs/article.yaml

      farm run s3://bucket/manifest.jsonl --store s3://bucket/farm --address auto --nodes 4 --yes
    """
    from farm.intake.scoring import ScoringSettings
    from farm.quality.judge import QualityJudge
    from farm.training.dispatch.messages import DispatchSettings
    from farm.training.lane.settings import SampleSettings
    from farm.training.run.request import RunRequest

    request = RunRequest(
        manifest,
        store,
        base=base,
        revision=revision,
        recipe=recipe_fields(recipe),
        executor="local" if in_process else "ray",
        address=address,
        hardware=hardware_of(gpu, gpu_memory, gpus, nodes, cpus, price, address),
        slots=slots,
        lanes=lanes,
        gpu_fraction=gpu_fraction,
        checkpointing=checkpointing,
        compile=compile,
        samples=SampleSettings(steps=sample_steps, per_prompt=samples),
        dispatch=DispatchSettings(max_failures=max_failures),
        make_judge=QualityJudge if cards else None,
        scoring=ScoringSettings(scorer, dino, scoring_share),
        skip_faulty=skip_faulty,
        take_over=take_over,
        node_timeout_s=node_timeout,
    )
    prepared = prepare(request)
    _show_and_ask(prepared, yes=yes or json)
    summary = run_prepared(prepared, plain=plain or json)
    finish(prepared, summary, write_report=report, json=json)
    raise typer.Exit(summary.exit_code)


# -- shared with the other commands ---------------------------------------------------------------


def recipe_fields(assignments: list[str] | None) -> dict[str, Any]:
    """``steps=300`` and the like as fields; values are read as YAML.

    Raises:
        UserError: for what is not name=value.
    """
    import yaml

    from farm.errors import UserError
    from farm.intake.parsing.yaml import parse_scalar

    fields: dict[str, Any] = {}
    for text in assignments or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {text!r} is not name=value", "write for instance steps=300")
        # YAML 1.1, which safe_load reads, takes 1e-3 for a word; in manifests it is a number
        read = yaml.safe_load(value)
        fields[name.strip()] = parse_scalar(read) if isinstance(read, str) else read
    return fields


def hardware_of(
    gpu: str | None,
    memory_gib: float | None,
    gpus: int,
    nodes: int | None,
    cpus: float | None,
    price: float | None,
    address: str | None = None,
) -> Hardware:
    """The hardware that the user described; else the cluster's own, or this machine's.

    Raises:
        UserError: if the memory of an unknown GPU is not given, or the cluster cannot be reached
            or has no nodes for lanes.
    """
    from dataclasses import replace

    from farm.errors import UserError
    from farm.training.plan.hardware import Hardware, memory_of
    from farm.training.run.prepare import this_machine

    if address is not None and gpu is None and cpus is None:
        from farm.training.cluster.hardware import read_hardware

        return read_hardware(address, gpu_memory_gib=memory_gib, nodes=nodes, price=price)
    nodes = nodes or 1
    if gpu is None:
        machine = this_machine()
        gpus = machine.gpus_per_node if gpus == 1 else gpus
        return replace(
            machine,
            num_nodes=nodes,
            gpus_per_node=gpus,
            cpus_per_node=cpus or machine.cpus_per_node,
            dollars_per_gpu_hour=price,
        )
    gib = memory_gib or memory_of(gpu)
    if gib is None:
        raise UserError(f"the memory of {gpu!r} is not known", "give it with --gpu-memory")
    return Hardware(gpu, int(gib * 2**30), gpus, cpus or 8.0 * gpus, nodes, price)


def prepare(request: RunRequest) -> PreparedRun:
    """Load the base and read the photos, with progress on stderr."""
    from farm.cli.progress import counting, fetching, stages
    from farm.training.run.prepare import prepare_run

    with stages() as shown:
        photos, fetched = counting(shown, "reading photos"), fetching(shown, request.base)
        return prepare_run(request, progress=photos, fetched=fetched)


def show_plan(prepared: PreparedRun) -> None:
    """Show warnings and the plan on stderr."""
    from farm.cli.output import note, print_rich
    from farm.cli.run_view import plan_table
    from farm.visible import visible

    if prepared.check is not None:
        for fault in prepared.check.warnings[:SHOWN_WARNINGS]:
            note(f"warning: {visible(str(fault))}")
        more = len(prepared.check.warnings) - SHOWN_WARNINGS
        if more > 0:
            note(f"… and {more:,} more warnings: farm check shows them")
    if prepared.plan is not None:
        print_rich(plan_table(prepared), stderr=True)


def _show_and_ask(prepared: PreparedRun, *, yes: bool) -> None:
    """Show the plan on stderr; ask where somebody can answer."""
    show_plan(prepared)
    if prepared.plan is None or yes or not sys.stdin.isatty():
        return
    if not typer.confirm("Start?", default=True, err=True):
        raise typer.Exit(0)


def run_prepared(prepared: PreparedRun, *, plain: bool = False) -> RunSummary:
    """Execute with a view; Ctrl-C stops cleanly, a second one at once."""
    from farm.cli.run_view import run_view
    from farm.training.execute import execute_run

    stop = threading.Event()

    first_at = 0.0

    def on_signal(number: int, frame: object) -> None:
        nonlocal first_at
        if stop.is_set():
            # a process group's SIGTERM also arrives through whoever supervises this driver
            if number == signal.SIGTERM and time.monotonic() - first_at < SIGTERM_ECHO_S:
                return
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        first_at = time.monotonic()
        stop.set()
        print("stopping: running jobs are being saved …", file=sys.stderr, flush=True)

    def arm() -> None:
        signal.signal(signal.SIGINT, on_signal)
        signal.signal(signal.SIGTERM, on_signal)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        arm()
        expected_s = prepared.plan.hours * 3600 if prepared.plan is not None else None
        with run_view(plain=plain, expected_s=expected_s) as view:
            return execute_run(prepared, view=view, stop=stop, arm=arm)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def finish(
    prepared: PreparedRun, summary: RunSummary, *, write_report: bool, json: bool
) -> str | None:
    """Say how it ended: words, or one JSON line; returns where the report lies."""
    from farm.cli.output import print_json, say
    from farm.cli.run_view import summary_lines

    page = _report(prepared) if write_report else None
    if json:
        print_json(summary.to_json())
        return page
    for line in summary_lines(summary, prepared.store.url):
        say(line)
    if page is not None:
        say(f"report: {page}")
    return page


def _report(prepared: PreparedRun) -> str | None:
    """Write the report page; a report that cannot be written is no reason to fail a run."""
    from farm.cli.output import note
    from farm.errors import FarmError

    try:
        from farm.quality.report.collect import report_run

        return str(report_run(prepared.store, prepared.run_id)["report"])
    except (FarmError, OSError, ImportError) as error:
        note(f"warning: no report could be written: {error}")
        return None
