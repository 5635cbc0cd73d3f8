"""What passes measure on their device: layout and kernel; a choice never changes values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from farm.adapters.bank import kernel_choice, kernels
from farm.adapters.bank.kernel_choice import choose_kernel
from farm.base.device import layout
from farm.base.device.layout import channels_last_is_faster
from farm.base.loading import load_base
from farm.training.slots.speed import Speed

CPU = torch.device("cpu")
SHAPE = (2, 6, 8, 2)


@pytest.mark.parametrize(("times", "is_faster"), [((2.0, 1.0), True), ((1.0, 2.0), False)])
def test_the_faster_layout_is_chosen(
    monkeypatch: pytest.MonkeyPatch, times: tuple[float, float], is_faster: bool
) -> None:
    given = iter(times)

    def timed(run: object, device: object) -> float:
        run()  # type: ignore[operator]
        return next(given)

    monkeypatch.setattr(layout, "fastest_s", timed)
    unet = load_base("tiny").components["unet"]
    assert channels_last_is_faster(unet, (4, 8, 8), 2, torch.float32, CPU) is is_faster
    assert not channels_last_is_faster(nn.Linear(2, 2), (4, 8, 8), 2, torch.float32, CPU)


def test_without_triton_adapters_are_products() -> None:
    if kernels.why_unavailable(CPU) is not None:
        assert choose_kernel(SHAPE, torch.float32, CPU) == "products"


@pytest.mark.parametrize(
    ("times", "error", "chosen"),
    [((2.0, 1.0), 0.0, "triton"), ((1.0, 2.0), 0.0, "products"), ((2.0, 1.0), 0.1, "products")],
)
def test_the_kernel_is_chosen_if_it_is_faster_and_gives_the_same_values(
    monkeypatch: pytest.MonkeyPatch, times: tuple[float, float], error: float, chosen: str
) -> None:
    given = iter(times)
    measured = kernel_choice._measured

    def pretended(shape: object, dtype: object, device: object, kernel: str) -> object:
        _, values = measured(SHAPE, torch.float32, CPU, "products")
        return next(given), [one + error * (kernel == "triton") for one in values]

    monkeypatch.setattr(kernels, "why_unavailable", lambda device: None)
    monkeypatch.setattr(kernel_choice, "_measured", pretended)
    assert choose_kernel(SHAPE, torch.float32, CPU) == chosen


def test_a_kernel_that_does_not_run_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise RuntimeError("no such architecture")

    monkeypatch.setattr(kernels, "why_unavailable", lambda device: None)
    monkeypatch.setattr(kernels, "add_adapters", fail)
    assert choose_kernel(SHAPE, torch.float32, CPU) == "products"


def test_only_eager_passes_on_gpus_measure() -> None:
    gpu = torch.device("cuda")
    sizes = {"slots": 8, "rows": 16, "checkpointing": False}
    compiled, eager = Speed().on(gpu, **sizes), Speed(compile=False).on(gpu, **sizes)
    assert (compiled.channels_last, compiled.kernel) == (True, "products")
    assert (eager.channels_last, eager.kernel) == (None, None)
    asked = Speed(compile=False, channels_last=False, kernel="triton").on(gpu, **sizes)
    assert (asked.channels_last, asked.kernel) == (False, "triton")
    on_cpu = Speed().on(CPU, slots=1, rows=2, checkpointing=False)
    assert (on_cpu.channels_last, on_cpu.kernel) == (False, "products")
