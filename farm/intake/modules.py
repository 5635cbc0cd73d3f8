"""Which module names of a recipe exist in a base.

Owns the matching of name endings and the faults of unknown ones. Does not load a base: its modules
are given as names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from farm.errors import Fault
from farm.intake.faults import nearest
from farm.intake.rows import ManifestRow, Path
from farm.recipe import Recipe

__all__ = ["MODULE_FIELDS", "BaseModules", "WrittenAt", "fits", "module_faults"]

WrittenAt = tuple[ManifestRow, tuple[str, ...]]
"""The row in which a field was written, and its path in it."""
MODULE_FIELDS = ("target_modules", "text_encoder_modules")
SHOWN = 24
"""Endings named in a remedy at most."""


@dataclass(frozen=True)
class BaseModules:
    """The paths of a base's modules that can have adapters."""

    base: str
    """The base as the user named it."""
    denoiser: tuple[str, ...]
    text_encoders: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Name and paths of each."""


def fits(recipe: Recipe, modules: BaseModules) -> bool:
    """Whether a base has all modules that a recipe names, and the recipe names one at least."""
    return not _unknown(recipe.target_modules, recipe.text_encoder_modules, modules)


def module_faults(
    recipe: Recipe, modules: BaseModules, places: Mapping[str, WrittenAt]
) -> Iterator[Fault]:
    """A fault for each module name of a recipe that a base does not have.

    Args:
        places: where each field of ``MODULE_FIELDS`` was written: the row, and the path in it.
    """
    unknown = _unknown(recipe.target_modules, recipe.text_encoder_modules, modules)
    for field, index, message, remedy in unknown:
        row, path = places[field]
        where: Path = path if index is None else (*path, index)
        yield row.fault(where, message, remedy)


_Unknown = tuple[str, int | None, str, str]


@lru_cache(64)
def _unknown(
    target: tuple[str, ...], text: tuple[str, ...], modules: BaseModules
) -> tuple[_Unknown, ...]:
    """Field, index, message and remedy of each unknown name."""
    found: list[_Unknown] = []
    if not target and not text:
        found.append(
            (MODULE_FIELDS[0], None, "no modules get an adapter", "name some, or leave it out")
        )
    for index, ending in enumerate(target):
        if not _matches(ending, modules.denoiser):
            message = f"the base `{modules.base}` has no module that ends with `{ending}`"
            found.append((MODULE_FIELDS[0], index, message, _remedy(ending, modules.denoiser)))
    encoders = dict(modules.text_encoders)
    for index, ending in enumerate(text):
        if not encoders:
            message = f"the base `{modules.base}` has no text encoder that can have adapters"
            found.append((MODULE_FIELDS[1], index, message, "leave `text_encoder_modules` out"))
            continue
        start, _, rest = ending.partition(".")
        own = {start: encoders[start]} if start in encoders else encoders
        wanted = rest if start in encoders else ending
        for name, paths in own.items():
            if not _matches(wanted, paths):
                message = f"`{name}` of the base `{modules.base}` has no module that ends with "
                found.append(
                    (MODULE_FIELDS[1], index, f"{message}`{wanted}`", _remedy(wanted, paths))
                )
                break
    return tuple(found)


def _matches(ending: str, paths: Sequence[str]) -> bool:
    return any(path == ending or path.endswith(f".{ending}") for path in paths)


def _remedy(ending: str, paths: Sequence[str]) -> str:
    endings = dict.fromkeys(_ending_of(path) for path in paths)
    remedy = nearest(ending, endings)
    if remedy.startswith("did"):
        return remedy
    shown = ", ".join(f"`{one}`" for one in list(endings)[:SHOWN])
    return f"name endings of its modules: {shown}{', …' if len(endings) > SHOWN else ''}"


def _ending_of(path: str) -> str:
    """The shortest ending that names a kind of module, such as ``to_q`` or ``to_out.0``."""
    parts = path.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].isdigit():
        start -= 1
    return ".".join(parts[start:])
