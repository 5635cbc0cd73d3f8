"""Caches on the tiny base."""

import pytest

from farm.adapters.files.folder import load_adapter
from farm.adapters.files.layer_names import layer_names
from farm.base.loading import load_base
from farm.serving.adapters.cache import AdaptedBase, AdapterCache


@pytest.fixture(scope="module")
def base():
    return load_base("tiny")


@pytest.fixture
def make_cache(tmp_path, base):
    opened = []

    def make(source, folder="disk", **options):
        cache = AdapterCache(
            source,
            lambda path: load_adapter(path, layer_names(base)),
            folder=tmp_path / folder,
            base=AdaptedBase(base.fingerprint, base.family.title),
            **options,
        )
        cache.revocations.refresh()
        opened.append(cache)
        return cache

    yield make
    for cache in opened:
        cache.close()
