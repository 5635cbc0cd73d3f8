"""Importing diffusers, transformers and peft without what the farm does not use of them.

Owns a hook on their import. It changes what they import, not what they do. Importing them takes a
process five CPU seconds. While they or torch are imported, no cyclic garbage is collected: a fifth
of the time went into looking at modules, which stay. More parts are postponed until something needs
them.

- ``importlib.metadata.packages_distributions`` reads every installed package's file list. Each of
  the libraries calls it once; while they are imported, its result is kept.
- ``scipy.stats`` is imported by diffusers' schedulers for one option, beta sigmas;
  ``scipy.integrate`` for the LMS scheduler's coefficients; ``scipy.optimize`` by transformers for
  the losses of models that detect objects, which use one function of it.
- ``torch.distributed.tensor`` and FSDP are imported by transformers where a model may be spread
  over processes, and peft by diffusers where adapters may be loaded into its models. The
  farm's own processes (``keep_imports``) do neither: there, the libraries find both not installed.
- transformers reads every file of its hundreds of models twice, a quarter of a second each time,
  because it remembers too few folders; here it remembers all.
- ``torch._dynamo`` is imported for decorators that mark what ``torch.compile`` must skip, and for
  the question whether a module is compiled. Without a GPU, where the farm does not compile,
  the decorators do nothing, and no module is.

In ``sys.modules``, modules of scipy and torch are replaced by ones that import the real one at the
first use of anything else, and before its submodules, which may rely on it.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

from farm.model_imports.gc_pause import gc_paused

__all__ = ["install", "keep_imports", "keeps_imports", "lean_imports"]

LIBRARIES = ("diffusers", "transformers", "peft")
QUESTIONS = {
    "diffusers.utils.import_utils": "is_peft_available",
    "transformers.utils.import_utils": "is_torch_distributed_available",
}
"""Functions that libraries call before they import what the farm's own processes leave out."""
FOLDER_READER = ("transformers.utils.import_utils", "create_import_structure_from_path")
"""The function that reads what a folder of transformers' models offers."""
ALONE = frozenset(("torch._dynamo._trace_wrapped_higher_order_op",))
"""Submodules that do not rely on the package with a substitute; transformers imports them."""


class _LaterModule(ModuleType):
    """A substitute for a module that is imported when one of its attributes is first used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # inspect asks every module for its file
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    """The module of this name, imported now if a substitute is in its place."""
    if isinstance(sys.modules.get(name), _LaterModule):
        del sys.modules[name]
    return importlib.import_module(name)


class _LoadedLoader(Loader):
    """Gives a module that its package has imported already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _spec_of_loaded(module: ModuleType) -> ModuleSpec:
    """A specification by which importlib, which takes the module's own one, loads nothing again."""
    loader = _LoadedLoader(module)
    module.__spec__ = ModuleSpec(module.__name__, loader, origin=module.__file__)
    return module.__spec__


class _LeanLoader(Loader):
    """Executes a module as its own loader does, inside of ``lean_imports``."""

    def __init__(self, loader: Loader, *, is_torch: bool) -> None:
        self._loader, self._is_torch = loader, is_torch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # the substitutes depend on torch
        with gc_paused(), nullcontext() if self._is_torch else lean_imports():
            self._loader.exec_module(module)
            if module.__name__ == FOLDER_READER[0]:
                _remember_every_folder(module, FOLDER_READER[1])
            if _keeps_imports:
                if question := QUESTIONS.get(module.__name__):
                    setattr(module, question, _never)
                gc.freeze()

    def __getattr__(self, name: str) -> Any:  # get_source, get_data, … for tracebacks and readers
        return getattr(self._loader, name)


class _LeanFinder(MetaPathFinder):
    """Finds torch and modules of these libraries where they are, with the loader wrapped; imports a
    package that has a substitute before its submodules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = fullname.rpartition(".")[0]
        if isinstance(sys.modules.get(package), _LaterModule) and fullname not in ALONE:
            _real(package)
            loaded = sys.modules.get(fullname)
            return None if loaded is None else _spec_of_loaded(loaded)
        is_torch = fullname == "torch"  # which imports its own parts
        if not is_torch and fullname.partition(".")[0] not in LIBRARIES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LeanLoader(spec.loader, is_torch=is_torch)
        return spec


_lock = threading.RLock()
_depth = 0
_undo = ExitStack()


@contextmanager
def lean_imports() -> Iterator[None]:
    """Keep the substitutes in place until the outermost block of all threads has ended.

    Loading a base is such a block too: torch's own initializers use the same decorators.
    """
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _substitute()
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _undo.close()


def _substitute() -> None:
    from importlib import metadata  # takes longer to import than all else here

    whole = metadata.packages_distributions
    metadata.packages_distributions = _remembering(whole)
    _undo.callback(setattr, metadata, "packages_distributions", whole)
    _stand_in("scipy.stats")
    _stand_in("scipy.integrate")
    _stand_in("scipy.optimize", linear_sum_assignment=_linear_sum_assignment)
    if not _has_gpu():
        _stand_in("torch._dynamo", **_DYNAMO)


def _stand_in(name: str, **attributes: Any) -> None:
    if name in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # no scipy
        return
    if spec is None:
        return
    module = _LaterModule(name)
    vars(module).update(attributes, __path__=spec.submodule_search_locations)
    sys.modules[name] = module
    _undo.callback(_remove, module)


def _remove(module: ModuleType) -> None:
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]


def _remember_every_folder(module: ModuleType, name: str) -> None:
    reader = getattr(getattr(module, name, None), "__wrapped__", None)
    if reader is not None:
        setattr(module, name, functools.cache(reader))


def _never() -> bool:
    return False


def _linear_sum_assignment(*arguments: Any, **named: Any) -> Any:
    """Scipy's function, imported when it is called."""
    return _real("scipy.optimize").linear_sum_assignment(*arguments, **named)


def _same(decorated: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator without effect, with or without arguments."""
    return _same if decorated is None else decorated


class _NothingCompiled:
    """In place of the class of compiled modules: nothing is one."""


_DYNAMO = {
    "allow_in_graph": _same,
    "assume_constant_result": _same,
    "disable": _same,
    "eval_frame": SimpleNamespace(OptimizedModule=_NothingCompiled),
}


@functools.cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@functools.cache
def _remembering(function: Callable[[], Any]) -> Callable[[], Any]:
    """A function of no arguments that is called once."""
    return functools.cache(function)


_keeps_imports = False


def keep_imports() -> None:
    """Say that this process runs nothing but the farm; called before the libraries are imported.

    Garbage is never looked for among imported modules, which are most of a process's objects; what
    is garbage when a module is imported stays, too. Peft and most of ``torch.distributed`` are
    left out.
    """
    global _keeps_imports
    _keeps_imports = True


def keeps_imports() -> bool:
    """Whether ``keep_imports`` was called."""
    return _keeps_imports


def install() -> None:
    """Put the hook before the other finders, once. Libraries that are imported already stay."""
    if not any(isinstance(finder, _LeanFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LeanFinder())
