"""Silence diffusers, transformers and huggingface_hub while they load.

Owns the switches of these libraries' progress bars, logs and warnings. The farm shows its own
progress while a base loads (``farm.cli.views.progress``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["quiet_loading"]


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Suppress progress bars, log lines and warnings of model libraries; restore them on exit.

    ``FARM_DEBUG`` in the environment leaves them on.
    """
    if os.environ.get("FARM_DEBUG"):
        yield
        return
    with ExitStack() as restored:
        # imported with warnings off: the import itself raises some
        restored.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        from diffusers.utils import logging as diffusers_logging
        from huggingface_hub.utils.tqdm import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )
        from transformers.utils import logging as transformers_logging

        hub_was_on = not are_progress_bars_disabled()
        for library in (diffusers_logging, transformers_logging):
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                restored.callback(library.enable_progress_bar)
            restored.callback(_set_verbosity, library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
        # transformers switches the hub's bars along with its own
        restored.callback(enable_progress_bars if hub_was_on else disable_progress_bars)
        disable_progress_bars()
        yield


def _set_verbosity(setter: Callable[[int], None], level: int) -> None:
    setter(level)
