"""Compiled functions that fall back to the original, and the compiler's cache of a node."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from farm.base.device.cuda_errors import without_frames
from farm.file_facts import cache_folder

__all__ = ["Compiled", "share_compile_cache"]

LOG = logging.getLogger(__name__)

Given = ParamSpec("Given")
Found = TypeVar("Found")

BACKENDS = ("aot_eager", "eager")
"""Backends that check tracing without generating code; other strings are modes of the default."""


class Compiled(Generic[Given, Found]):
    """A function compiled for fixed shapes; if that fails, the original runs instead."""

    def __init__(self, function: Callable[Given, Found], how: bool | str, *, name: str) -> None:
        """Compile on the first call.

        Args:
            how: False runs the original; a string is a mode or a backend of ``torch.compile``.
            name: for the log.
        """
        self._original, self._name = function, name
        self._compiled: Callable[Given, Found] | None = None
        if how:
            share_compile_cache()
            options: dict[str, Any] = {"dynamic": False}
            if isinstance(how, str):
                options["backend" if how in BACKENDS else "mode"] = how
            self._compiled = torch.compile(function, **options)
        self.is_proven = False
        """Whether all of it has been compiled and has run, which the caller sets: later errors are
        those of the pass itself."""

    @property
    def is_compiled(self) -> bool:
        """Whether calls run compiled code."""
        return self._compiled is not None

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Found:
        """Call the compiled function, or the original."""
        if self._compiled is None:
            return self._original(*args, **kwargs)
        try:
            found = self._compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self.give_up(error):
                raise
        else:
            return found
        return self._original(*args, **kwargs)

    def give_up(self, error: Exception) -> bool:
        """Run the original from now on; False if an error cannot be the compiler's.

        The backward pass is compiled when it is first needed, outside the call of this object.
        """
        if self._compiled is None or self.is_proven:
            return False
        reason = str(without_frames(error)).strip().splitlines() or [type(error).__name__]
        LOG.warning("%s runs uncompiled: %s", self._name, reason[0][:300])
        self._compiled = None
        return True

    def close(self) -> None:
        """Forget the compiled code: dynamo stops compiling code that it has compiled often."""
        if self._compiled is not None:
            self._compiled = None
            torch.compiler.reset()


def share_compile_cache() -> None:
    """Let all processes of a node use one cache of generated code, unless the user chose one."""
    folder = cache_folder()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
