"""The seam to ``farm.quality``: a judge is named by its path and made where the base is.

Owns the naming only. Training stands below quality and imports nothing of it.
"""

from __future__ import annotations

import importlib

from farm.base.model import Base
from farm.errors import UserError
from farm.training.lane_settings import Judge

__all__ = ["make_judge"]


def make_judge(path: str | None, base: Base) -> Judge | None:
    """The judge that ``module:function`` makes of a base; None where none is asked for.

    Raises:
        UserError: if there is no such function.
    """
    if path is None:
        return None
    module, _, name = path.partition(":")
    try:
        judge: Judge = getattr(importlib.import_module(module), name)(base)
    except (ImportError, AttributeError) as error:
        raise UserError(f"there is no judge {path!r}: {error}", "name it as module:function") from (
            error
        )
    return judge
