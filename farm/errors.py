"""Every error that the farm raises deliberately, in one tree.

    FarmError                       exit 1
    ├── UserError                   exit 2: the command or its input is wrong; never retried
    │   ├── ManifestError           exit 3: manifest or photos have faults, all reported at once
    │   ├── PhotoFault              exit 3: a photo or archive that cannot be used
    │   ├── BaseModelError          the base cannot be read, or is refused (pickled weights)
    │   ├── AdapterFileError        an adapter file is missing, corrupt, or does not fit the base
    │   ├── OutputUnusable          a folder or file of results cannot be written
    │   ├── StoreUnusable           exit 7: the store is full, read-only, missing, or denies access
    │   └── PlanError               the run does not fit the hardware; reports by how much
    ├── StoreError                  the store did not respond or lost a write; retried
    ├── LaneLost                    a lane, node or driver disappeared; not the fault of a job
    │   └── HeadLost                exit 6: the head node is gone; all work is safe in the store
    ├── ServingError                a request that the endpoint answers with an HTTP error
    │   ├── RequestRefused          400, the request is invalid
    │   ├── NotAuthorized           401, no API key or an invalid one
    │   ├── AdapterNotFound         404, unknown name, revoked, or another tenant's
    │   ├── KeyReused               409, an idempotency key of another request
    │   ├── TooBusy                 429, with ``retry_after_s`` from the backlog
    │   └── Draining                503, the replica is restarting
    └── Interrupted                 exit 130: the user stopped it; says how to resume

Each has a message and a remedy. All take positional arguments only, so that they survive pickling
between processes. The failure of a job (it diverged, it does not fit in memory) ends no process and
is not an exception: it is an event in the ledger, with the same two texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

__all__ = [
    "AdapterFileError",
    "AdapterNotFound",
    "BaseModelError",
    "Draining",
    "FarmError",
    "Fault",
    "FaultList",
    "HeadLost",
    "Interrupted",
    "KeyReused",
    "LaneLost",
    "ManifestError",
    "NotAuthorized",
    "OutputUnusable",
    "PhotoFault",
    "PlanError",
    "RequestRefused",
    "ServingError",
    "StoreError",
    "StoreUnusable",
    "TooBusy",
    "UserError",
    "explain",
]


class FarmError(Exception):
    """Base class of the farm's errors: a message for the user and a remedy."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class UserError(FarmError):
    """The command or its input is wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a manifest or a photo, with its location and its remedy."""

    file: str
    message: str
    remedy: str
    line: int | None = None
    """1-based line in ``file``; the row number in tables without lines."""
    field: str = ""
    """Dotted path, such as ``subjects[3].recipe.rank``."""
    subject: str = ""
    severity: Literal["error", "warning"] = "error"
    count: int = 1
    """Faults of its kind that it stands for, itself included."""

    def __post_init__(self) -> None:
        # a value of megabytes may be quoted in any of them
        for name in ("message", "remedy", "field", "subject"):
            if len(text := getattr(self, name)) > MAX_TEXT_CHARACTERS:
                object.__setattr__(self, name, f"{text[:MAX_TEXT_CHARACTERS]}…")

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        field = f" {self.field}:" if self.field else ""
        more = f"; and {self.count - 1:,} more like this" if self.count > 1 else ""
        return f"{place}:{field} {self.message} ({self.remedy}){more}"

    @property
    def kind(self) -> tuple[str, str]:
        """What faults of one kind share: severity, field, and the text without names and
        numbers."""
        field = _INDEX.sub("[]", self.field)
        words = self.message.rsplit(": ", 1)[-1] if self.field.endswith("photos") else self.message
        plain = _QUOTED.sub("_", words[:MAX_KIND_CHARACTERS]).split()
        return self.severity + field, " ".join("_" if _NUMBER.search(one) else one for one in plain)


_INDEX = re.compile(r"\[\d+\]")
_QUOTED = re.compile(r"`[^`]*`")
_NUMBER = re.compile(r"[\d/.]")
MAX_TEXT_CHARACTERS = 2_000
"""Of each text of a fault; the rest of it is left out."""
MAX_KIND_CHARACTERS = 500
MAX_FAULTS = 10_000
"""Faults of one manifest that are kept; of more, the first of each kind and their number."""
MAX_SUBJECT_FAULTS = 1_000
MAX_FAULT_CHARACTERS = 4_000_000
MAX_KINDS = 100


class FaultList(list[Fault]):
    """Faults as they are found. Those beyond a limit are counted by kind, so that a manifest of
    millions of faults takes no more memory than one of thousands."""

    def __init__(self, faults: Iterable[Fault] = (), limit: int = MAX_FAULTS) -> None:
        super().__init__()
        self._limit, self._room = limit, MAX_FAULT_CHARACTERS
        self._more: dict[tuple[str, str], Fault] = {}
        """The first of each kind beyond the limit, with the number of all of them."""
        self.extend(faults)

    def append(self, fault: Fault) -> None:
        """Keep a fault, or count it."""
        if len(self) < self._limit and self._room > 0:
            self._room -= len(fault.file) + len(fault.field) + len(fault.message)
            self._room -= len(fault.remedy) + len(fault.subject)
            super().append(fault)
            return
        kind = fault.kind
        if kind not in self._more and len(self._more) >= MAX_KINDS:
            kind = (fault.severity, "")
        first = self._more.get(kind)
        self._more[kind] = fault if first is None else _with_more(first, fault.count)

    def extend(self, faults: Iterable[Fault]) -> None:
        """Keep or count each fault."""
        for fault in faults.whole() if isinstance(faults, FaultList) else faults:
            self.append(fault)

    def __iadd__(self, faults: Iterable[Fault]) -> Self:  # type: ignore[misc,override]
        self.extend(faults)
        return self

    def whole(self) -> list[Fault]:
        """The faults that are kept, and one of each kind that stands for the others."""
        return [*self, *self._more.values()]


def _with_more(fault: Fault, count: int) -> Fault:
    return replace(fault, count=fault.count + count)


class ManifestError(UserError):
    """A manifest with faults; all of them are reported at once."""

    exit_code = 3

    def __init__(self, message: str, remedy: str = "", faults: Sequence[Fault] = ()) -> None:
        super().__init__(message, remedy)
        self.faults = tuple(faults)
        self.args = (message, remedy, self.faults)

    @property
    def listed(self) -> list[Fault]:
        """The faults that its text lists: the errors, which alone it is raised for."""
        return [fault for fault in self.faults if fault.severity == "error"]

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  {fault}" for fault in self.listed)])


class PhotoFault(UserError):
    """A photo or archive that cannot be used; ``check`` converts it to a ``Fault`` with its place.

    Exit code 3, like any fault of a manifest. Its message follows the photo's name ("it is
    truncated").
    """

    exit_code = 3


class BaseModelError(UserError):
    """A base model that cannot be loaded or is refused."""


class AdapterFileError(UserError):
    """An adapter file that is missing, corrupt, or does not fit its base."""


class PlanError(UserError):
    """A run that does not fit the available hardware."""


class OutputUnusable(UserError):
    """A folder or file of results, outside the store, that cannot be written: it is in the way, or
    its disk is full or read-only."""


class StoreUnusable(UserError):
    """The store is full, read-only, missing, or denies access. The same call fails again until
    someone changes that."""

    exit_code = 7


class StoreError(FarmError):
    """The store failed; the same call may succeed later."""


class LaneLost(FarmError):
    """A lane, its node or the driver disappeared; not the fault of a job."""


class HeadLost(LaneLost):
    """The head of the Ray cluster does not respond; the run can resume on a new one."""

    exit_code = 6


class ServingError(FarmError):
    """A request that the endpoint answers with an HTTP error."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, remedy: str = "", param: str | None = None) -> None:
        super().__init__(message, remedy)
        self.param = param
        self.args = (message, remedy, param)


class RequestRefused(ServingError):
    """The request is invalid."""

    status = 400
    code = "invalid_request"


class NotAuthorized(ServingError):
    """No API key, or an unknown one."""

    status = 401
    code = "invalid_api_key"


class AdapterNotFound(ServingError):
    """No such adapter for this key: unknown, revoked, or another tenant's."""

    status = 404
    code = "model_not_found"


class KeyReused(ServingError):
    """An idempotency key that was used for a different request."""

    status = 409
    code = "idempotency_key_reused"


class TooBusy(ServingError):
    """The backlog, or the rate of the API key, is over its limit."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, remedy: str = "", param: str | None = None, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message, remedy, param)
        self.retry_after_s = retry_after_s
        self.args = (message, remedy, param, retry_after_s)


class Draining(ServingError):
    """The replica is shutting down; another one will answer."""

    status = 503
    code = "service_unavailable"


class Interrupted(FarmError):
    """The user stopped the command."""

    exit_code = 130


UNEXPECTED_REMEDY = "this is a bug in the farm: report it with the output of `farm logs`"


def explain(error: BaseException) -> tuple[str, str]:
    """Message and remedy of any error, including unexpected ones."""
    if isinstance(error, FarmError):
        return error.message, error.remedy
    return repr(error), UNEXPECTED_REMEDY
