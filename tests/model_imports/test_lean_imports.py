"""What importing diffusers, transformers and peft leaves out, and that it is there when needed;
which commands import none of them.
"""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from support.manifests import write_manifest

from farm.model_imports import lean

SCRIPT = """
import importlib.metadata, sys
whole = importlib.metadata.packages_distributions

from farm.base.loading import load_base
from farm.model_imports.lean import keep_imports

keep_imports()
base = load_base("embedded")
parts = ("_dynamo", "distributed.tensor", "distributed.fsdp", "distributed.checkpoint")
others = ("peft", "scipy.stats", "scipy.integrate", "scipy.optimize")
left_out = [
    name for name in (*(f"torch.{part}" for part in parts), *others) if name in sys.modules
]
assert not left_out, left_out
assert importlib.metadata.packages_distributions is whole
from transformers.utils import import_utils
folders = import_utils.create_import_structure_from_path.cache_info()
assert folders.hits > 0.9 * folders.misses, folders  # read once, asked for twice

from diffusers import EulerDiscreteScheduler

scheduler = EulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(4)
assert scheduler.sigmas[0] > scheduler.sigmas[1] > scheduler.sigmas[-1] == 0

from diffusers import LMSDiscreteScheduler

lms = LMSDiscreteScheduler()
lms.set_timesteps(4)
first_step = lms.get_lms_coefficient(1, 0, 0)  # integral of 1
assert abs(first_step - float(lms.sigmas[1] - lms.sigmas[0])) < 1e-3

from transformers.loss import loss_for_object_detection as detection

rows, columns = detection.linear_sum_assignment([[4.0, 1.0], [2.0, 3.0]])
assert (list(rows), list(columns)) == ([0, 1], [1, 0])

from farm.model_imports.lean import lean_imports

with lean_imports():  # as torchao and torchvision do, which the libraries import
    from torch._dynamo.utils import is_compile_supported

import torch
assert torch.distributed.is_available()
from diffusers.utils.torch_utils import is_compiled_module

layer = torch.nn.Linear(2, 2)
assert not is_compiled_module(layer)
compiled = torch.compile(layer, backend="eager")
assert torch.equal(compiled(torch.ones(1, 2)), layer(torch.ones(1, 2)))
assert is_compiled_module(compiled)
import torch._dynamo.config
assert torch._dynamo.eval_frame.OptimizedModule is type(compiled)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, torch.compile is wanted at once")
def test_a_base_loads_without_the_compiler_and_statistics_which_still_work_when_used() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


def test_a_package_with_a_substitute_is_imported_before_its_submodules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lean_package"
    package.mkdir()
    (package / "__init__.py").write_text("from lean_package.part import VALUE\n")
    (package / "part.py").write_text("from . import other\nVALUE = object()\n")
    (package / "other.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with lean.lean_imports():
        lean._stand_in("lean_package")
        whole, part = sys.modules["lean_package"], import_module("lean_package.part")
    assert whole.VALUE is part.VALUE is sys.modules["lean_package"].VALUE
    assert part is sys.modules["lean_package.part"] is sys.modules["lean_package"].part
    assert part.__spec__ is not None
    assert part.__spec__.origin == str(package / "part.py")
    for name in [name for name in sys.modules if name.startswith("lean_package")]:
        del sys.modules[name]


DRIVER = """
import sys
from pathlib import Path

import farm
import farm.training.run.export
from farm.base.device import presence
from farm.cli import app

manifest, folder = sys.argv[1:]
presence.DEVICES, presence.DRIVER = (), "no-such-driver.so"  # a machine without a GPU

def imported(*more):
    return {"torch", "diffusers", "transformers", "peft", "accelerate", *more} & set(sys.modules)

for command in ("check", "plan"):
    for base in ("embedded", "tiny"):
        store = ["--store", f"{folder}/store"] if command == "plan" else []
        app([command, manifest, "--base", base, *store, "--json"], standalone_mode=False)
farm.check(manifest)
farm.plan(manifest, store=f"{folder}/store")
assert not imported("ray", "pandas"), imported("ray", "pandas")

import farm.training.cluster.jobs.uploads
import farm.training.cluster.run  # the driver of a run on Ray, until its end
from farm.quality.report.collect import report_run
from farm.quality.report.trackers import track_run
from farm.quality.report.view import RunView, SubjectView

subject = SubjectView("cat", "cat", "default", "cat", "committed", loss_curve=[0.5])
track_run(RunView("r", "embedded", "", 1.0, [subject]), ["tensorboard"], folder=Path(folder))
assert not imported(), imported()
"""


def test_a_runs_driver_imports_no_model_library(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", 1)
    command = [sys.executable, "-c", DRIVER, str(manifest), str(tmp_path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
