"""Whether there is a GPU is known without torch, and never wrong."""

import pytest
import torch

from farm.base.device import presence


def test_there_is_a_gpu_where_torch_finds_one() -> None:
    assert presence.has_gpu() == torch.cuda.is_available()


def test_torch_is_asked_wherever_a_driver_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(presence, "DRIVER", "no-such-driver.so.1")
    monkeypatch.setattr(presence, "DEVICES", ("null",))
    assert presence.has_gpu()
    monkeypatch.setattr(presence, "DEVICES", ())
    assert not presence.has_gpu()
    monkeypatch.setattr(presence, "DRIVER", "libc.so.6")
    assert presence.has_gpu()
