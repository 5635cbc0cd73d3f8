"""The mark reader: it sees what the scorer cannot, and its weights are small."""

from pathlib import Path

import numpy as np
import torch

from farm.base.embedded.marks.network import WEIGHTS, load_mark_reader, read_marks
from farm.base.embedded.marks.training import (
    measure_mark_reader,
    render_marked,
    train_mark_reader,
)
from farm.base.embedded.world.words import MARKS


def test_it_reads_the_marks_of_held_out_scenes_and_their_absence() -> None:
    shares = measure_mark_reader(load_mark_reader(), 60)
    assert shares["mark"] >= 0.95
    assert shares["mark_and_colour"] >= 0.92
    assert shares["no_mark"] >= 0.95


def test_it_takes_at_most_half_a_megabyte() -> None:
    assert WEIGHTS.stat().st_size <= 500_000


def test_every_scene_is_rendered_with_its_mark_and_without() -> None:
    album = render_marked(3, 6)
    changed = (album.marked_NHWC != album.bare_NHWC).any(-1).mean((1, 2))
    assert (changed > 0.003).all()
    assert (changed < 0.2).all()  # nothing but the mark


def test_a_finished_training_is_read_from_its_state_and_not_repeated(tmp_path: Path) -> None:
    def train(folder: Path, steps: int) -> torch.nn.Module:
        return train_mark_reader(folder, num_scenes=8, num_steps=steps, batch_size=4)

    whole = train(tmp_path / "whole", 4)
    (tmp_path / "halted").mkdir()
    (tmp_path / "halted" / "album.npz").write_bytes((tmp_path / "whole/album.npz").read_bytes())
    state = (tmp_path / "whole" / "state.safetensors").read_bytes()
    (tmp_path / "halted" / "state.safetensors").write_bytes(state)  # at its last step
    again = train(tmp_path / "halted", 4)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    found = read_marks(load_mark_reader(tmp_path / "halted" / "model.safetensors"),
                       np.zeros((2, 64, 64, 3), np.uint8))  # fmt: skip
    assert len(found) == 2
    assert all(one.kind in (None, *MARKS) for one in found)
