"""Commands of the documentation, checked with their programs' parsers.

Owns the splitting of a shell line into commands, and each program's parser: typer's for `farm`,
click's for `ray` and `serve`. Runs no command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import typer.main
import yaml

from support.deploy.dockerfile import instructions, stages
from support.docs.pages import ROOT

OPERATORS = {"&&", "||", "|", ";", "&"}
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


class WrongCommand(AssertionError):
    """A command that its program would refuse."""


def check_line(line: str) -> None:
    """Every command of a shell line.

    Raises:
        WrongCommand: if a program would refuse it, or has no known parser.
    """
    for command in commands_of(line):
        check_command(command)


def commands_of(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, without leading variable assignments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in OPERATORS:
            if words:
                yield words
            words = []
        elif words or not ASSIGNMENT.match(word):
            words.append(word)


def check_command(words: list[str]) -> None:
    """One command.

    Raises:
        WrongCommand: as ``check_line``.
    """
    program, *arguments = words
    if program == "export":
        if not all(ASSIGNMENT.match(word) for word in arguments):
            raise WrongCommand(f"{shlex.join(words)}: export takes NAME=value")
        return
    if program in OTHERS:
        if not OTHERS[program](arguments):
            raise WrongCommand(f"{shlex.join(words)}: not a command that is checked here")
        return
    if program not in PARSERS:
        raise WrongCommand(f"{shlex.join(words)}: no parser of {program!r} is known here")
    path, values = parse(PARSERS[program](), program, arguments)
    if check := FURTHER.get(" ".join(path)):
        check(values)


def parse(command: Any, name: str, arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The subcommand, and its parameters' values.

    Raises:
        WrongCommand: if the parser refuses.
    """
    path, parent = [name], None
    while hasattr(command, "get_command"):
        parent = command.context_class(command, info_name=name, parent=parent)
        found = command.get_command(parent, arguments[0]) if arguments else None
        if found is None:
            raise WrongCommand(f"{' '.join([*path, *arguments])}: there is no such command")
        command, name, arguments = found, arguments[0], arguments[1:]
        path.append(name)
    try:
        context = command.make_context(name, list(arguments), parent=parent)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        raise WrongCommand(f"{' '.join([*path, *arguments])}: {message}") from error
    return path, dict(context.params)


def has_option(option: str) -> bool:
    """Whether any command of `farm`, or one of Ray's that the pages name, has this option."""
    return any(
        option in [*parameter.opts, *parameter.secondary_opts]
        for program in PARSERS.values()
        for command in _leaves(program())
        for parameter in command.params
    )


def _leaves(command: Any) -> Iterator[Any]:
    yield command
    for child in getattr(command, "commands", {}).values():
        yield from _leaves(child)


def _farm() -> Any:
    from farm.cli import app

    return typer.main.get_command(app)


def _ray() -> Any:
    from ray.scripts.scripts import cli

    return cli


def _serve() -> Any:
    from ray.serve.scripts import cli

    return cli


def _applies_a_checked_file(arguments: list[str]) -> bool:
    """Whether `kubectl` applies a file that ``tests/test_deployment.py`` checks."""
    known = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").rglob("*.yaml")}
    return arguments[:2] == ["apply", "-f"] and set(arguments[2:]) <= known


def _builds_a_known_target(arguments: list[str]) -> bool:
    """Whether `docker` builds a stage of the Dockerfile."""
    found = stages(instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")))
    if len(arguments) != 6 or arguments[0] != "build" or arguments[5] != ".":
        return False
    options = dict(zip(arguments[1:5:2], arguments[2:5:2], strict=True))
    return set(options) == {"--target", "--tag"} and options["--target"] in found


OTHERS: dict[str, Callable[[list[str]], bool]] = {
    "docker": _builds_a_known_target,
    "kubectl": _applies_a_checked_file,
}
"""Programs that are not Python: only the forms that the pages use are accepted."""
PARSERS: dict[str, Callable[[], Any]] = {"farm": _farm, "ray": _ray, "serve": _serve}


# -- values that no parser checks ----------------------------------------------------------------


def _check_recipe(values: dict[str, Any]) -> None:
    """Check that ``--set`` has valid fields and values of the recipe."""
    from farm.cli.options import recipe_fields
    from farm.recipe import Recipe

    Recipe.model_validate(recipe_fields(values.get("recipe")))


def _check_submission(values: dict[str, Any]) -> None:
    """Check the options that `farm submit` passes to `farm run`."""
    further = shlex.split(" ".join(values.get("options") or ()))
    check_command(["farm", "run", values["manifest"], *further])


def _check_cluster(values: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    path = ROOT / values["cluster_config_file"]
    validate_config(prepare_config(yaml.safe_load(path.read_text())))


def _check_deployment(values: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    from farm.serving.settings import EndpointConfig

    config = yaml.safe_load((ROOT / values["config_or_import_path"]).read_text())
    for application in ServeDeploySchema.model_validate(config).applications:
        EndpointConfig.model_validate(application.args)


FURTHER: dict[str, Callable[[dict[str, Any]], None]] = {
    "farm check": _check_recipe,
    "farm run": _check_recipe,
    "farm plan": _check_recipe,
    "farm submit": _check_submission,
    "ray up": _check_cluster,
    "ray dashboard": _check_cluster,
    "serve deploy": _check_deployment,
}
