"""An object store in memory that fails by a plan, as object stores do, and checks itself.

It drops requests, loses responses, delivers requests late or cut short, and ends its client before
or after any request. After every change it calls an observer, which sees the store without faults.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import fsspec
from fsspec import AbstractFileSystem

from farm.errors import FarmError
from farm.storage import Store

Fault = Literal["", "refused", "unanswered", "late", "cut", "killed before", "killed after"]
FAULTS: tuple[Fault, ...] = (
    "refused", "unanswered", "late", "cut", "killed before", "killed after",
)  # fmt: skip
_names = itertools.count()
Work = Callable[[], object]
LATE_BY = 3
"""Requests after which a late one arrives."""


class Killed(BaseException):
    """The process that made the request is gone."""


class Unanswered(OSError):
    """No response to a request; it may have been carried out."""


class Objects:
    """The objects of one store, and the faults of the requests to come."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.plan: Iterator[Fault] = iter(())
        self.observe: Callable[[], None] = lambda: None
        self.num_requests = 0
        self._late: list[tuple[int, Callable[[], object]]] = []
        self._is_quiet = False

    def fail(self, plan: Iterable[Fault]) -> None:
        """Apply these faults to the next requests."""
        self.plan = iter(plan)

    def land(self) -> None:
        """Deliver everything that is under way, as when its sender is long gone."""
        self.plan = iter(())
        self._arrive(all_of_it=True)

    def request(self, act: Callable[[], Any], *, is_write: bool) -> Any:
        """Carry out a request, with the next fault of the plan."""
        if self._is_quiet:
            return act()
        self.num_requests += 1
        self._arrive()
        fault = next(self.plan, "")
        if fault == "killed before":
            raise Killed
        if fault == "refused" or (fault == "late" and not is_write):
            raise Unanswered("refused")
        if fault == "late":
            self._late.append((self.num_requests + LATE_BY, act))
            raise Unanswered("timed out")
        result = act()
        if is_write:
            self._observe()
        if fault == "killed after":
            raise Killed
        if fault == "unanswered":
            raise Unanswered("response lost")
        if fault == "cut" and isinstance(result, bytes):
            return result[: len(result) // 2]
        return result

    def _arrive(self, *, all_of_it: bool = False) -> None:
        due = [act for at, act in self._late if all_of_it or at <= self.num_requests]
        self._late = [] if all_of_it else [one for one in self._late if one[0] > self.num_requests]
        for act in due:
            try:
                act()
            except FileExistsError:
                continue
            self._observe()

    def _observe(self) -> None:
        self._is_quiet = True
        try:
            self.observe()
        finally:
            self._is_quiet = False


class UnreliableFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """``unreliable://<name>/…``, on the objects of that name."""

    protocol = "unreliable"
    cachable = False
    stores: dict[str, Objects] = {}  # noqa: RUF012

    def _objects(self, path: str) -> Objects:
        return self.stores[self._strip_protocol(path).split("/", 1)[0]]

    def _ask(self, path: str, act: Callable[[dict[str, bytes]], Any], **kind: bool) -> Any:
        objects = self._objects(path)
        return objects.request(lambda: act(objects.data), is_write=kind.get("is_write", False))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)

        def put(data: dict[str, bytes]) -> None:
            if mode == "create" and path in data:
                raise FileExistsError(path)
            data[path] = bytes(value)

        self._ask(path, put, is_write=True)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)

        def get(data: dict[str, bytes]) -> bytes:
            if path not in data:
                raise FileNotFoundError(path)
            return data[path]

        found: bytes = self._ask(path, get)
        return found

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def rm(self, path: str, recursive: bool = False, maxdepth: Any = None) -> None:
        """One request for each object, as object stores do it."""
        path = self._strip_protocol(path)
        for name in self.find(path):
            self._ask(path, lambda data, name=name: data.pop(name, None), is_write=True)

    def find(self, path: str, *_: Any, **__: Any) -> list[str]:
        path = self._strip_protocol(path)
        found: list[str] = self._ask(
            path,
            lambda data: sorted(n for n in data if n == path or n.startswith(f"{path}/")),
        )
        return found

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        start = len(path) + 1

        def names(data: dict[str, bytes]) -> list[str]:
            below = [name for name in data if name.startswith(f"{path}/")]
            return sorted({f"{path}/{name[start:].split('/', 1)[0]}" for name in below})

        found: list[str] = self._ask(path, names)
        if not found:
            raise FileNotFoundError(path)
        return [{"name": name, "size": 0, "type": "file"} for name in found] if detail else found

    def exists(self, path: str, **_: Any) -> bool:
        path = self._strip_protocol(path)
        return bool(
            self._ask(path, lambda data: any(n == path or n.startswith(f"{path}/") for n in data))
        )


fsspec.register_implementation("unreliable", UnreliableFileSystem, clobber=True)


def unreliable_store(name: str) -> tuple[Store, Objects]:
    """An empty store of this name, and its objects."""
    objects = UnreliableFileSystem.stores[name] = Objects()
    return Store(f"unreliable://{name}"), objects


def open_store() -> tuple[Store, Objects]:
    """A new store and its objects."""
    return unreliable_store(f"s{next(_names)}")


def carry_out(objects: Objects, work: Work, plan: list[Fault]) -> bool:
    """Do the work under a plan of faults, repeatedly as restarted processes do, until it is
    done; returns whether the first attempt succeeded."""
    objects.fail(plan)
    for attempt in range(len(plan) + 2):
        try:
            work()
            objects.land()
            return not attempt
        except Killed:
            objects.land()
        except FarmError:
            pass
    raise AssertionError("the work is never done, although the store works again")


def at_every_point(
    make: Callable[[], tuple[Objects, Work]], *, faults: tuple[Fault, ...] = FAULTS
) -> None:
    """Meet each single fault at each request of some work."""
    objects, work = make()
    work()
    for fault, point in itertools.product(faults, range(objects.num_requests)):
        objects, work = make()
        carry_out(objects, work, [""] * point + [fault])
        objects.observe()
