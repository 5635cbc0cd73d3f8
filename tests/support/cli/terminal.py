"""What commands may print on a terminal: the farm's own lines, as in a user's environment."""

from __future__ import annotations

import os
import re

__all__ = ["environment", "foreign_lines"]

OURS = (
    r"loading (the base )?\S+ …",
    r"reading photos: .*",
    r"run [0-9a-f]{12}",
    r"[│┌└├].*",
    r"[\w-]+: (committed|found.*)",
    r"\d+ of \d+ committed, .*",
    r"rendered \d+ subjects into .*",
    r"serving .* at http://.*",
    r" *\d+\.\d s  .*",  # the endpoint's start, with its seconds
    r"scoring \d+ adapters?: .* images .* …",
    r"warning: .*",
    r"note: the store .* holds nothing yet; .*",
    r"note: The embedded base generates small cartoons: .*",
    r"then an endpoint on the adapters starts and generates an image per class",
    r"starting the endpoint on the store of the demo …",
    r"the endpoint generated \d+ images, one per class",
)
"""Every line that commands of the tests may write on stderr."""
SWITCHES = ("TRANSFORMERS_", "DIFFUSERS_", "PYTHONWARNINGS", "FARM_DEBUG")
"""Beginnings of the names of variables that tests set and users do not."""


def environment() -> dict[str, str]:
    """A user's environment: without the switches that tests set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SWITCHES)}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def foreign_lines(stderr: str) -> list[str]:
    """Lines that none of our commands writes; each update of a progress bar counts as a line."""
    lines = [line for line in re.split(r"[\r\n]", stderr) if line.strip()]
    return [line for line in lines if not any(re.fullmatch(form, line) for form in OURS)]
