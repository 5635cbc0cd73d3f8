"""Options that several commands share, each declared once with its help text.

Owns the annotated types, and the models that group them: ``PlanOptions``, ``ScoringOptions`` and
``RunOptions``. A command takes a model as one parameter; ``with_options`` shows its fields to the
command line as options. ``farm.plan`` and ``farm.run`` take the same fields as keyword arguments.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from farm.cli.private_hosts import PrivateHostsOption
from farm.recipe import Quantization

__all__ = [
    "BaseOption",
    "DeviceOption",
    "InProcessOption",
    "JsonOption",
    "ManifestArgument",
    "NamesArgument",
    "NamesOption",
    "OptionalManifest",
    "OptionalRun",
    "PlanOptions",
    "QuantizeOption",
    "RevisionOption",
    "RunOptions",
    "ScoringOptions",
    "SetOption",
    "StoreOption",
    "quantization_of",
    "read_options",
    "recipe_fields",
    "with_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])
Model = TypeVar("Model")

_MANIFEST = typer.Argument(
    help="A manifest (YAML, JSON, JSONL, CSV, Parquet, kohya TOML, metadata.jsonl) or a "
    "folder of photo folders; a path or a URL."
)
ManifestArgument = Annotated[str, _MANIFEST]
OptionalManifest = Annotated[str | None, _MANIFEST]
OptionalRun = Annotated[
    str | None, typer.Argument(help="Run id or its first characters; the latest run by default.")
]
_NAMES = "Adapters: name or namespace/name, or name@key for one version; may repeat."
NamesArgument = Annotated[list[str] | None, typer.Argument(help=_NAMES)]
NamesOption = Annotated[
    list[str] | None, typer.Option("--name", help="The same as an option; may repeat.")
]
_STORE = typer.Option(
    "--store", envvar="FARM_STORE", help="Folder or fsspec URL that holds runs and adapters."
)
_BASE = typer.Option("--base", help="Base model: embedded, a folder, a URL or a hub id.")
_SET = typer.Option(
    "--set",
    help="Recipe field for all subjects, such as steps=300 or early_stop.patience=3; may repeat.",
)
StoreOption = Annotated[str, _STORE]
SetOption = Annotated[list[str] | None, _SET]
BaseOption = Annotated[str, _BASE]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.")
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        "--quantize", help="Keep the base's denoiser in few bits: int8 or nf4 (extra quantize)."
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
InProcessOption = Annotated[
    bool, typer.Option("--in-process", help="Run one lane in this process, without Ray.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document as the last line.")
]


def quantization_of(text: str | None) -> Quantization | None:
    """A kind of quantisation as the command line names it.

    Raises:
        UserError: if there is no such kind.
    """
    from farm.errors import UserError

    for kind in get_args(Quantization):
        if text == kind:
            found: Quantization = kind
            return found
    if text is None:
        return None
    raise UserError(
        f"--quantize {text!r} is not known", f"use {' or '.join(get_args(Quantization))}"
    )


@dataclass(frozen=True)
class CommandLine:
    """How a field is written on the command line, where that is not the field's own type."""

    written: Any
    read: Callable[[Any], Any]
    python_help: str = ""
    """Help for callers from Python, where it differs too."""


def recipe_fields(assignments: list[str] | None) -> dict[str, Any]:
    """Read ``steps=300`` and ``early_stop.patience=3`` as recipe fields; values are read as YAML.

    Raises:
        UserError: for anything that is not name=value, and a field given both whole and in parts.
    """
    import yaml

    from farm.errors import UserError
    from farm.intake.parsing.yaml import parse_scalar

    found: dict[str, Any] = {}
    for text in assignments or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {text!r} is not name=value", "write, for example, steps=300")
        # safe_load follows YAML 1.1, where 1e-3 is a string; in manifests it is a number
        read = yaml.safe_load(value)
        *outer, last = name.strip().split(".")
        target = found
        for part in outer:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {text!r}: `{part}` is given as a whole too", "give one")
        target[last] = parse_scalar(read) if isinstance(read, str) else read
    return found


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """The models that score adapters, and how much of the training time they may take."""

    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            envvar="FARM_SCORER",
            help="CLIP that scores the adapters: a folder or a hub id. Default: the embedded "
            "scorer for the embedded base, none for others.",
        ),
    ] = None
    dino: Annotated[
        str | None,
        typer.Option(
            "--dino",
            envvar="FARM_DINO",
            help="DINO or DINOv2 that also scores them: a folder or a hub id.",
        ),
    ] = None
    scoring_share: Annotated[
        float | None,
        typer.Option(
            "--scoring-share",
            envvar="FARM_SCORING_SHARE",
            min=0,
            help="Scoring cost as a share of the training cost; 0.12 by default.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What is trained, into which store, on which base and hardware."""

    store: Annotated[str | os.PathLike[str], CommandLine(str, str), _STORE] = "work"
    base: Annotated[str | os.PathLike[str], CommandLine(str, str), _BASE] = "embedded"
    revision: RevisionOption = None
    quantize: QuantizeOption = None
    recipe: Annotated[
        Mapping[str, Any],
        CommandLine(
            list[str] | None, recipe_fields, 'Recipe fields for all subjects: {"steps": 300}.'
        ),
        _SET,
    ] = field(default_factory=dict)
    slots: Annotated[int | None, typer.Option("--slots", min=1, help="Slots per lane.")] = None
    lanes: Annotated[int | None, typer.Option("--lanes", min=1, help="Lanes per node.")] = None
    gpu_fraction: Annotated[
        float | None,
        typer.Option("--gpu-fraction", min=0.01, max=1, help="GPU fraction per lane."),
    ] = None
    checkpointing: Annotated[
        bool | None,
        typer.Option("--checkpointing/--no-checkpointing", help="Use gradient checkpointing."),
    ] = None
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="GPU model of the nodes, such as A100.")
    ] = None
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", help="Memory of that GPU in GiB.")
    ] = None
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs per node.")] = 1
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes to run lanes on.")] = (
        None
    )
    cpus: Annotated[float | None, typer.Option("--cpus", help="CPU cores per node.")] = None
    price: Annotated[
        float | None, typer.Option("--price", help="Price of one GPU hour in dollars.")
    ] = None
    skip_faulty: Annotated[
        bool,
        typer.Option("--skip-faulty", help="Train the valid subjects of a manifest with faults."),
    ] = False
    allow_private_hosts: PrivateHostsOption = False

    def __post_init__(self) -> None:
        _check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class RunOptions(ScoringOptions, PlanOptions):
    """All options of a run: those of its plan, and how it is executed, sampled and scored."""

    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Ray cluster to run on, such as auto; by default Ray starts on this machine.",
        ),
    ] = None
    in_process: InProcessOption = False
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Compile the denoiser; by default on GPUs, if it pays."
        ),
    ] = None
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="Images per sample prompt; 0 for none.")
    ] = 1
    sample_steps: Annotated[
        int, typer.Option("--sample-steps", min=1, help="Denoising steps of sample images.")
    ] = 25
    cards: Annotated[
        bool, typer.Option("--cards/--no-cards", help="Make a quality card for each adapter.")
    ] = True
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write the report page at the end.")
    ] = True
    max_failures: Annotated[
        int, typer.Option("--max-failures", min=1, help="Failed attempts before quarantine.")
    ] = 3
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Take the run over from a driver that seems alive."),
    ] = False
    node_timeout: Annotated[
        float | None,
        typer.Option(
            "--node-timeout", min=1, help="Seconds to wait for nodes before reporting them missing."
        ),
    ] = None


def _check_bounds(options: Any) -> None:
    """Hold the values of a model against the bounds that its options declare.

    Raises:
        UserError: for the first value outside them.
    """
    from farm.errors import UserError

    for name, (_, info, _) in _declared(type(options)).items():
        value = getattr(options, name)
        if not isinstance(value, int | float):
            continue
        if info.min is not None and value < info.min:
            raise UserError(f"{name} is {value}", f"give at least {info.min}")
        if info.max is not None and value > info.max:
            raise UserError(f"{name} is {value}", f"give at most {info.max}")


def with_options(command: Command) -> Command:
    """Show the fields of a command's option models to typer as options of the command itself."""
    hints = get_type_hints(command, include_extras=True)
    parameters: dict[str, inspect.Parameter] = {}
    models: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            models[name] = hints[name]
            parameters |= {one.name: one for one in _parameters(hints[name])}
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters[name] = parameter.replace(annotation=hints[name], kind=kind)

    @functools.wraps(command)
    def call(**values: Any) -> Any:
        for name, model in models.items():
            given = {one.name: values.pop(one.name) for one in fields(model)}
            values[name] = read_options(model, given)
        return command(**values)

    call.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    call.__annotations__ = {name: one.annotation for name, one in parameters.items()}
    return call  # type: ignore[return-value]


def read_options(model: type[Model], values: Mapping[str, Any]) -> Model:
    """A model from values as the command line gives them; further names are ignored."""
    declared = _declared(model)
    read = {
        name: other.read(values[name]) if other is not None else values[name]
        for name, (_, _, other) in declared.items()
    }
    return model(**read)


def _declared(model: type) -> dict[str, tuple[Any, Any, CommandLine | None]]:
    """The type on the command line, typer's information and the reading of each field."""
    found = {}
    for name, hint in get_type_hints(model, include_extras=True).items():
        plain, *notes = get_args(hint)
        other = next((note for note in notes if isinstance(note, CommandLine)), None)
        (info,) = (note for note in notes if not isinstance(note, CommandLine))
        found[name] = (other.written if other else plain, info, other)
    return found


def _parameters(model: type) -> list[inspect.Parameter]:
    """The fields of a model as keyword-only parameters, annotated as typer reads them."""
    made = []
    declared = _declared(model)
    for one in fields(model):
        written, info, _ = declared[one.name]
        default = one.default if one.default is not MISSING else None
        annotation = Annotated[written, info]  # type: ignore[valid-type]
        kind = inspect.Parameter.KEYWORD_ONLY
        made.append(inspect.Parameter(one.name, kind, default=default, annotation=annotation))
    return made
