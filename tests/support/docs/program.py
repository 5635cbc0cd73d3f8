"""The programs that blocks start: `farm`, and the process of a page's Python blocks.

Owns the smaller defaults of both. Neither imports more than it would without them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable

SMALL = {
    "demo": {"subjects": 2, "steps": 30},
    "run": {"sample_steps": 8},
    "study": {"prior": {"subjects": 2, "seeds": 1, "steps": 4}},
}
"""Defaults of commands that would otherwise train for minutes."""
SMALL_SET = 4
"""The embedded base's own 48 class images, or the demo's 32, would take longer than the training.
The same for the command and for Python blocks: a run's jobs depend on it."""
SMALL_SHARE = 1.6
"""Pays for the smallest quality cards in the demo: the whole ones take longer than the training."""
SMALL_STUDY = {"num_checks": 1, "num_photos": 3, "num_prior_images": 4, "nouns": ["cat"]}
SMALL_BUDGET = {
    "num_prompt_pictures": 4,
    "num_class_pictures": 4,
    "num_drift_pictures": 4,
    "steps": 2,
}
"""Fields of the prior-preservation study and of its scores that no option sets."""


def run_farm() -> None:
    """The command line with the smaller defaults, and with the options of ``SMALL`` in the
    environment."""
    from farm.cli import app, main

    shrink_recipe()
    assert app.info.context_settings is not None
    app.info.context_settings["default_map"] = json.loads(os.environ["SMALL"])
    if sys.argv[1:2] == ["demo"]:
        _shrink_demo()
    if sys.argv[1:3] == ["study", "prior"]:
        _shrink_study()
    if sys.argv[1:2] == ["serve"]:
        _shrink_measurement()
    main()


def shrink_recipe() -> None:
    """Fewer class images for each run on the embedded base."""
    from farm.recipe import BASE_RECIPES

    BASE_RECIPES["embedded"]["num_prior_images"] = SMALL_SET


def _shrink_demo() -> None:
    from farm.cli.commands import demo
    from farm.intake import scoring

    demo.RECIPE["num_prior_images"] = SMALL_SET
    demo.RunOptions = functools.partial(demo.RunOptions, **SMALL["run"])
    scoring.WHOLE_CARD = SMALL_SHARE


def _shrink_study() -> None:
    from farm.quality.study import prior

    budget = prior.ScoringBudget(**SMALL_BUDGET)
    prior.PriorStudy = functools.partial(prior.PriorStudy, **SMALL_STUDY, budget=budget)
    prior.PoseReader = functools.partial(prior.PoseReader, num_a_pose=12, num_held=4)


def _shrink_measurement() -> None:
    """The batch limit is measured with one timed pass per size, in a third of the time."""
    from farm.serving.engine.sizing import measuring

    measuring.REPEATS = 1


def run_blocks() -> None:
    """Run each block that comes as a line of JSON on stdin; write its traceback, or nothing."""
    shrink_recipe()
    names = {"__name__": "__main__"}
    for line in sys.stdin:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                exec(compile(json.loads(line), "<block>", "exec"), names)
            fault = ""
        except BaseException:
            fault = traceback.format_exc()
        print(json.dumps(fault), flush=True)


PROGRAMS: dict[str, Callable[[], None]] = {"farm": run_farm, "blocks": run_blocks}
