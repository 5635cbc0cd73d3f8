"""Keeps the output of other libraries off the terminal.

Owns the process-wide switches, which are set before anything heavy is imported. Set ``FARM_DEBUG``
in the environment to keep all output.
"""

from __future__ import annotations

import logging
import os
import warnings

__all__ = ["hush_libraries"]

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONWARNINGS": "ignore",
}
"""Read by the libraries when they are imported, in this process and in its children. Variables
that the user has set keep their values."""


def hush_libraries() -> None:
    """Silence warnings, log lines and progress bars of libraries in this process and its children.

    Errors still arrive as exceptions, which ``farm.cli.main`` turns into messages.
    """
    if os.environ.get("FARM_DEBUG"):
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    # without a handler, Python prints log records of level WARNING and above
    logging.getLogger().addHandler(logging.NullHandler())
