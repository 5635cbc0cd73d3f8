"""PEFT settings of an adapter: ``adapter_config.json``, or the header of a diffusers file.

Owns their validation and the scale that they give each layer. The settings come from untrusted
files: every value is checked, and their regular expressions run in RE2, which takes linear time,
instead of in a backtracking engine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm.adapters.file_names import PEFT_CONFIG
from farm.errors import AdapterFileError

__all__ = ["HEADER_FIELD", "LoraSettings", "settings_beside", "settings_in_header"]

HEADER_FIELD = "lora_adapter_metadata"
"""The header field in which diffusers stores the settings, with keys prefixed by the component."""
MAX_BYTES = 8 * 2**20
MAX_PATTERNS = 4096
MAX_PATTERN_CHARACTERS = 1024
MAX_EXPRESSIONS = 512
"""Patterns that are more than a module's name; each is a program of its own."""
MAX_PROGRAM_BYTES = 2**18
"""Of one such program, and of what it notes while it runs."""
MAX_RANK_VALUE = 2**31 - 1
READABLE_TYPES = ("LORA", "LOHA", "LOKR")
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of ``init_lora_weights`` that change the base's own weights when training starts."""

VARIANTS = (
    *("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config"),
    *("alora_invocation_tokens", "layer_replication"),
)
"""Fields of PEFT's configs that, where they are set, make an adapter more than two matrices."""

_Pattern = Callable[[str], bool]
_Rank = Annotated[int, Field(ge=1, le=MAX_RANK_VALUE)]
_Alpha = Annotated[float, Field(allow_inf_nan=False)]
Value = TypeVar("Value")
_NAME = re.compile(r"[\w.]{1,1024}", re.ASCII)


class LoraSettings(BaseModel):
    """The fields of PEFT's configs that change an adapter's effect."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    peft_type: str = "LORA"
    r: _Rank | None = None
    lora_alpha: _Alpha | None = None
    alpha: _Alpha | None = None
    """The name of ``lora_alpha`` in LoHa and LoKr."""
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    init_lora_weights: Any = None
    variant: str = ""
    """The first of ``VARIANTS`` that is set."""

    @classmethod
    def read(cls, values: Mapping[str, Any], source: str) -> LoraSettings:
        """Validate settings.

        Raises:
            AdapterFileError: naming the source, if they are malformed or of another adapter type.
        """
        try:
            variant = next((name for name in VARIANTS if values.get(name)), "")
            settings = cls.model_validate({**values, "variant": variant})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise AdapterFileError(
                f"{source}: `{field[:200]}`: {first['msg']}", "save the adapter again with PEFT"
            ) from error
        settings._refuse_other_kinds(source)
        settings._check_patterns(source)
        return settings

    def _refuse_other_kinds(self, source: str) -> None:
        if self.peft_type not in READABLE_TYPES:
            raise AdapterFileError(
                f"{source} describes a PEFT {self.peft_type[:40]} adapter, not a LoRA",
                "train a LoRA, LoHa or LoKr",
            )
        if self.use_dora:
            raise AdapterFileError(
                f"{source} describes a DoRA adapter: it rescales the base's own weights, which no "
                "plain LoRA equals",
                "train it without DoRA",
            )
        if self.variant:
            raise AdapterFileError(
                f"{source} sets `{self.variant}`, a variant that no plain LoRA equals",
                f"train it without `{self.variant}`",
            )
        start = str(self.init_lora_weights).lower()
        if start.startswith(CHANGES_THE_BASE):
            raise AdapterFileError(
                f"{source} was trained from `init_lora_weights: {start[:40]}`, which changes the "
                "base's own weights",
                "convert it with PEFT's `path_initial_model_for_weight_conversion`",
            )

    def _check_patterns(self, source: str) -> None:
        for name in ("rank_pattern", "alpha_pattern"):
            patterns = getattr(self, name) or {}
            if len(patterns) > MAX_PATTERNS:
                raise AdapterFileError(
                    f"{source}: `{name}` has {len(patterns)} entries",
                    f"use at most {MAX_PATTERNS}",
                )
            if sum(_NAME.fullmatch(pattern) is None for pattern in patterns) > MAX_EXPRESSIONS:
                raise AdapterFileError(
                    f"{source}: `{name}` has more than {MAX_EXPRESSIONS} regular expressions",
                    "name the modules",
                )
            for pattern in patterns:
                _matcher(pattern, f"{source}: `{name}`")

    def alpha_of(self, path: str, rank: int) -> float | None:
        """The numerator of one layer's scale; the scale is this value over the rank.

        Args:
            path: the module's path within its component.
            rank: the layer's rank as stored.

        Returns:
            None if the settings have no alpha; the caller then uses the rank.
        """
        alpha = _first(self._alphas, path)
        if alpha is None:
            alpha = self.lora_alpha if self.lora_alpha is not None else self.alpha
        if alpha is None:
            return None
        # rank-stabilised LoRA scales by alpha / sqrt(rank)
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    def rank_of(self, path: str) -> int | None:
        """The configured rank of one layer."""
        return _first(self._ranks, path) or self.r

    @cached_property
    def _alphas(self) -> list[tuple[_Pattern, float]]:
        return [(_matcher(key, ""), value) for key, value in (self.alpha_pattern or {}).items()]

    @cached_property
    def _ranks(self) -> list[tuple[_Pattern, int]]:
        return [(_matcher(key, ""), value) for key, value in (self.rank_pattern or {}).items()]


def settings_beside(path: Path) -> LoraSettings | None:
    """The PEFT config in the folder of a weights file, or None.

    Raises:
        AdapterFileError: if it is malformed or describes an unsupported adapter.
    """
    config_path = path.with_name(PEFT_CONFIG)
    if not config_path.is_file():
        return None
    if config_path.stat().st_size > MAX_BYTES:
        raise AdapterFileError(f"{config_path} is over {MAX_BYTES} bytes", "fetch it again")
    return LoraSettings.read(_object(config_path.read_bytes(), str(config_path)), str(config_path))


def settings_in_header(header: Mapping[str, str], source: str) -> dict[str, LoraSettings]:
    """The settings in a diffusers file's header, by component; empty if it has none.

    Raises:
        AdapterFileError: if they are malformed or describe an unsupported adapter.
    """
    text = header.get(HEADER_FIELD)
    if text is None:
        return {}
    where = f"{source}: the header's {HEADER_FIELD}"
    if len(text) > MAX_BYTES:
        raise AdapterFileError(f"{where} is over {MAX_BYTES} bytes", "fetch it again")
    parts: dict[str, dict[str, Any]] = {}
    for key, value in _object(text, where).items():
        component, _, field = key.partition(".")
        parts.setdefault(component, {})[field] = value
    return {name: LoraSettings.read(values, where) for name, values in parts.items()}


def _object(text: str | bytes, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{source} is not JSON: {error}", "fetch it again") from error
    if not isinstance(value, dict):
        raise AdapterFileError(f"{source} is not a JSON object", "fetch it again")
    return value


def _first(patterns: list[tuple[_Pattern, Value]], path: str) -> Value | None:
    return next((value for matches, value in patterns if matches(path)), None)


def _matcher(pattern: str, source: str) -> _Pattern:
    """Match a pattern as PEFT does: against the module's full path, or any suffix after a dot."""
    if _NAME.fullmatch(pattern):
        return _ends_with(pattern)  # a module's name, as most patterns are
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise AdapterFileError(
            f"{source} has a pattern of {len(pattern)} characters",
            f"use at most {MAX_PATTERN_CHARACTERS}",
        )
    import re2  # only patterns need it: the rest reads adapters without this package

    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_PROGRAM_BYTES
    try:
        compiled = re2.compile(rf"(.*\.)?({pattern})", options)
    except re2.error as error:
        raise AdapterFileError(
            f"{source}: the regular expression {pattern[:100]!r} cannot be used: {error}",
            "write it without look-around and back-references, or name the modules",
        ) from error
    return lambda path: compiled.fullmatch(path) is not None


def _ends_with(name: str) -> _Pattern:
    """Match a pattern of only letters and dots, in which a dot matches any character."""

    def matches(path: str) -> bool:
        start = len(path) - len(name)
        if start < 0 or (start > 0 and path[start - 1] != "."):
            return False
        tail = path[start:]
        return tail == name or all(
            wanted in (".", found) for wanted, found in zip(name, tail, strict=True)
        )

    return matches
