"""An engine on the tiny base, and adapters committed for it."""

import pytest
from support.adapters import publish, published, random_weights

from farm.base.loading import load_base
from farm.serving.config import EngineConfig
from farm.serving.engine.engine import Engine


@pytest.fixture(scope="module")
def base():
    return load_base("tiny")


@pytest.fixture(scope="module")
def spare():
    """The same base once more, to make adapters with while an engine holds the other."""
    return load_base("tiny")


@pytest.fixture(scope="module")
def committed(tmp_path_factory, base):
    """Six adapters in a store, two of them with text-encoder layers."""
    folder = tmp_path_factory.mktemp("committed")
    registry, refs = published(folder, base, 4)
    for seed in (4, 5):
        weights = random_weights(base, seed, alpha=2.0, text=True)
        refs.append(publish(registry, base, weights, folder / "local", f"cat-{seed}"))
    return registry, refs


@pytest.fixture
def make_engine(tmp_path, base):
    """Opens engines one after another; a base carries one at a time."""
    opened = []

    def make(source=None, *, start=True, **options):
        settings = {"num_slots": 9, "max_rank": 8, "batch_rows": 8, "text_encoder_modules": ()}
        settings |= options
        engine = Engine(base, source, EngineConfig(**settings), cache_folder=tmp_path / "disk")
        opened.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    for engine in opened:
        engine.stop()
