"""An engine's work on a device: the batch first, prompts and pictures beside it, each in order.

The order of streams is recorded on a CPU; see ``support.training.streams``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.adapters import published
from support.engine import WAIT_S, ask, assert_same, generate
from support.training.streams import RecordedStreams

from farm.base.conditioning import Conditioning
from farm.base.loading import load_base
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine


def test_prompts_and_pictures_have_queues_of_low_priority_and_the_batch_never_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = RecordedStreams()
    streams.install(monkeypatch)
    base = load_base("tiny")
    registry, refs = published(tmp_path, load_base("tiny"), 2)
    passes: list[Any] = []
    encoded: dict[int, Any] = {}
    joined: list[tuple[bool, bool]] = []
    decoded: list[tuple[Any, bool]] = []
    denoise, encode, decode = base.denoise, base.encode_prompts, base.decode

    def denoised(*args: Any) -> Any:
        passes.append(streams.work())
        return denoise(*args)

    def encoding(*args: Any) -> Any:
        found = encode(*args)
        made = streams.work()
        encoded.update({one.data_ptr(): (made, found) for one in found.tensors})
        return found

    def decoding(latents: Any) -> Any:
        found = decode(latents)
        decoded.append((streams.current_stream(), not passes or streams.is_after(passes[-1])))
        return found

    def putting_together(
        parts: list[Conditioning], concatenate: Any = Conditioning.concatenate
    ) -> Conditioning:
        for tensor in (one for part in parts for one in part.tensors):
            made, _ = encoded[tensor.data_ptr()]
            kept = (tensor.data_ptr(), streams.current_stream()) in streams.kept
            joined.append((streams.is_after(made), kept))
        return concatenate(parts)

    for name, own in (("denoise", denoised), ("encode_prompts", encoding), ("decode", decoding)):
        monkeypatch.setattr(base, name, own)
    config = EngineConfig(batch_rows=4, pad_rows=False)
    with Engine(base, registry, config, cache_folder=tmp_path / "cache") as engine:
        encoded.clear()
        monkeypatch.setattr(Conditioning, "concatenate", staticmethod(putting_together))
        generate(engine, ask(1, refs[0]))
        generate(engine, ask(2, refs[1], prompt="another"))
    assert [stream.priority for stream in {stream for stream, _ in passes}] == [-1]
    beside = {made[0] for made, _ in encoded.values()} | {stream for stream, _ in decoded}
    assert len(beside) == 2
    assert {stream.priority for stream in beside} == {0}
    assert joined
    assert all(is_after and kept for is_after, kept in joined)
    assert [is_after for _, is_after in decoded] == [True, True]


def test_a_padded_engine_has_made_its_passes_before_the_first_request(tmp_path: Path) -> None:
    """With an adapter and without, at each size of a pass; adapters of one shape add none."""
    registry, refs = published(tmp_path, load_base("tiny"), 2)
    base = load_base("tiny")
    config = EngineConfig(batch_rows=4, pad_rows=True)
    with Engine(base, registry, config, cache_folder=tmp_path / "cache") as engine:
        fixed = engine._denoiser._passes._fixed
        before = list(fixed)
        assert sorted(key[0][0] for key in before) == [1, 1, 2, 2, 4, 4]
        for number in range(2):  # each time the batch has been empty before
            generate(engine, ask(number, refs[0]), ask(number + 10, refs[1], guidance=1.0))
            generate(engine, ask(number))
        assert set(fixed) == set(before)


def test_making_passes_while_pictures_run_changes_none_of_them(tmp_path: Path) -> None:
    """As after the measurement of the batch limit, which ends while the engine serves."""
    registry, refs = published(tmp_path, load_base("tiny"), 2)
    config = EngineConfig(batch_rows=4, pad_rows=True)
    with Engine(load_base("tiny"), registry, config, cache_folder=tmp_path / "cache") as engine:
        request = ask(1, refs[0], steps=14)
        (alone,) = generate(engine, request)
        ticket = engine.submit(ask(2, refs[0], seed=1, steps=14))
        warmed_at, meter = set(), engine._meter
        assert meter is not None
        while not ticket.ended:
            steps = [row.sampler.step for row in engine._batch]
            engine._inbox.result(lambda: meter.warm_up(2, engine._denoiser.warm_up))
            warmed_at.update(steps)
        assert len(warmed_at - {0, 14}) > 1
        assert_same(ticket.result(WAIT_S).pixels, alone)
