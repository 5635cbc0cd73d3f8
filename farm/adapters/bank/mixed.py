"""The serving bank: slots over one frozen component, each for an adapter of any layers and rank.

Owns the slots' weights, the memory that an adapter needs, and the wrapping of layers. A slot uses
only the memory of its own adapter. A layer is wrapped when the first adapter that changes it is
used in a pass, so layers that no adapter changes stay unwrapped.

``set_slot`` and ``clear_slot`` may be called from a thread other than the one that runs passes;
``open_layers`` and passes must run in one thread.

Legend: P parameters of an adapter's shape, L layers, I inputs, O outputs, r rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from farm.adapters.bank.layers import AdaptedLayer
from farm.adapters.bank.layout import adaptable_layers
from farm.adapters.bank.mixed_layers import MixedConv2d, MixedLinear, MixedRoute, RowPart
from farm.adapters.weights import AdapterWeights
from farm.base.device.transfer import sent
from farm.base.interface import Base
from farm.errors import AdapterFileError

__all__ = ["Held", "MixedBank", "Shape"]

SMALLEST_ROOM = 16
"""Rank up to which all adapters share a shape; above it, ranks are padded to powers of two. Rows of
one shape share their products, and above this rank none is padded to more than twice its own rank.
Batched products of a smaller rank are no faster: on one CPU core, products of rank 4 take 1.4 to
2.2 times as long as those of rank 16.
"""


@dataclass(frozen=True)
class _Place:
    """Where one layer's weights are in a flat row of an adapter."""

    name: str
    num_inputs: int
    num_outputs: int
    room: int
    """The padded rank."""
    down_start: int
    up_start: int


@dataclass(frozen=True, eq=False)
class Shape:
    """The layers that an adapter changes and the padded rank of each; compared by identity."""

    number: int
    places: tuple[_Place, ...]
    down_size: int
    """Parameters of the down halves, which come first."""
    num_parameters: int

    def views(self, flat_GP: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Each layer's down [G, I, r] and up [G, r, O] in flat rows of this shape."""
        groups = flat_GP.shape[0]
        found = {}
        for place in self.places:
            down = flat_GP[:, place.down_start : place.down_start + place.num_inputs * place.room]
            up = flat_GP[:, place.up_start : place.up_start + place.num_outputs * place.room]
            found[place.name] = (
                down.view(groups, -1, place.room),
                up.view(groups, place.room, -1),
            )
        return found


@dataclass(frozen=True, eq=False)
class Held:
    """An adapter in a slot."""

    shape: Shape
    flat_P: Tensor
    scales: tuple[float, ...]
    """alpha / rank of each layer of the shape."""
    serial: int
    """Unique among all adapters that a bank has ever held."""

    def copy_scaled(self, factor: float, target_P: Tensor) -> None:
        """Write the adapter to a row of its shape, with alpha / rank and a factor in the down
        halves: passes then multiply nothing, and the row's address never changes."""
        size = self.shape.down_size
        scale = self.scales[0] * factor if self.scales else 1.0
        target_P[size:].copy_(self.flat_P[size:])
        torch.mul(self.flat_P[:size], scale, out=target_P[:size])
        if len(set(self.scales)) <= 1:
            return
        source, target = self.shape.views(self.flat_P[None]), self.shape.views(target_P[None])
        for place, own in zip(self.shape.places, self.scales, strict=True):
            if own != self.scales[0]:  # some layers of an imported adapter
                torch.mul(source[place.name][0], own * factor, out=target[place.name][0])


class MixedBank:
    """Adapters of any shapes on one component of a base."""

    def __init__(self, base: Base, component: str, *, num_slots: int, max_per_row: int = 1) -> None:
        """Find the component's layers, without wrapping them yet.

        Args:
            component: the denoiser or a text encoder, by the base's own name.
            max_per_row: maximum number of adapters that one row may use at once.
        """
        self._root = base.components.get(component)
        self._layers: dict[str, nn.Module] = (
            {} if self._root is None else adaptable_layers(base, component)
        )
        self.num_slots, self.max_per_row = num_slots, max_per_row
        self.device, self.dtype = base.device, base.dtype
        self._slots: list[Held | None] = [None] * num_slots
        self._shapes: dict[tuple[tuple[str, int], ...], Shape] = {}
        self._serials = itertools.count()
        self._route = MixedRoute()
        self._wrapped: dict[str, tuple[nn.Module, str]] = {}

    # -- slots --------------------------------------------------------------------------------

    @torch.no_grad()
    def set_slot(self, slot: int, weights: AdapterWeights) -> None:
        """Put an adapter into a slot.

        Raises:
            AdapterFileError: if it has layers that the base lacks, or other shapes.
        """
        self.check_fits(weights)
        self._slots[slot] = None  # free its memory before allocating more
        shape = self._shape_of(weights)
        row_P = torch.zeros(shape.num_parameters, dtype=self.dtype)
        views = shape.views(row_P.unsqueeze(0))
        for name, layer in weights.layers.items():
            down, up = views[name]
            down[0, :, : layer.rank] = layer.down.detach().flatten(1).T.to(row_P)
            up[0, : layer.rank] = layer.up.detach().flatten(1).T.to(row_P)
        scales = tuple(weights.scale(place.name) for place in shape.places)
        self._slots[slot] = Held(shape, sent(row_P, self.device), scales, next(self._serials))

    def clear_slot(self, slot: int) -> None:
        """Empty a slot and free its memory."""
        self._slots[slot] = None

    def held(self, slot: int) -> Held | None:
        """The adapter in a slot; None for an empty one."""
        return self._slots[slot]

    def group_of(self, slots: Sequence[int]) -> tuple[int, ...]:
        """The group of a row; adjacent rows of one group share their products."""
        held = [self._slots[slot] for slot in slots]
        return tuple(-1 if one is None else one.shape.number for one in held)

    def num_bytes(self, weights: AdapterWeights) -> int:
        """Device memory that an adapter uses in a slot."""
        sizes = (self.size_of(name) for name in weights.layers)
        rooms = (_room(layer.rank) for layer in weights.layers.values())
        parameters = sum((i + o) * room for (i, o, _), room in zip(sizes, rooms, strict=True))
        return parameters * self.dtype.itemsize

    def _shape_of(self, weights: AdapterWeights) -> Shape:
        """The same object for all adapters with the same layers and padded ranks."""
        wanted = sorted((name, _room(layer.rank)) for name, layer in weights.layers.items())
        key = tuple(wanted)
        known = self._shapes.get(key)
        if known is None:
            known = self._shapes[key] = self._layout(len(self._shapes), wanted)
        return known

    def _layout(self, number: int, wanted: Sequence[tuple[str, int]]) -> Shape:
        sizes = [self.size_of(name) for name, _ in wanted]
        down_size = sum(size[0] * room for size, (_, room) in zip(sizes, wanted, strict=True))
        places, down_start, up_start = [], 0, down_size
        for (num_inputs, num_outputs, _), (name, room) in zip(sizes, wanted, strict=True):
            places.append(_Place(name, num_inputs, num_outputs, room, down_start, up_start))
            down_start += num_inputs * room
            up_start += num_outputs * room
        return Shape(number, tuple(places), down_size, up_start)

    # -- layers -------------------------------------------------------------------------------

    @property
    def layer_names(self) -> tuple[str, ...]:
        """All layers of the component that can have an adapter."""
        return tuple(self._layers)

    def size_of(self, name: str) -> tuple[int, int, tuple[int, ...]]:
        """Inputs (times the kernel's area), outputs and kernel of a layer."""
        layer = self._layers[name]
        if isinstance(layer, nn.Conv2d):
            high, wide = layer.kernel_size
            return layer.in_channels * high * wide, layer.out_channels, (high, wide)
        assert isinstance(layer, nn.Linear)
        return layer.in_features, layer.out_features, ()

    def check_fits(self, weights: AdapterWeights) -> None:
        """Reject an adapter that does not fit this base.

        Raises:
            AdapterFileError: if it has layers that the base lacks, or other shapes.
        """
        unknown = sorted(set(weights.layers) - set(self._layers))
        if unknown:
            raise AdapterFileError(
                f"it changes {len(unknown)} layers that cannot carry an adapter on this base, "
                f"such as {unknown[0]}",
                "use the base that the adapter was trained on",
            )
        for name, layer in weights.layers.items():
            wanted = self.size_of(name)
            found = (layer.down.flatten(1).shape[1], layer.up.shape[0], tuple(layer.down.shape[2:]))
            if found != wanted or layer.up.flatten(1).shape[1] != layer.rank:
                raise AdapterFileError(
                    f"{name} has inputs, outputs and kernel {found}, the base has {wanted}",
                    "use the base that the adapter was trained on",
                )

    def open_layers(self, names: Iterable[str]) -> None:
        """Wrap the layers that are not wrapped yet. Must not be called during a pass."""
        for name in names:
            if name not in self._wrapped:
                self._wrap(name)

    def _wrap(self, name: str) -> None:
        assert self._root is not None
        parent_path, _, attribute = name.split(".", 1)[1].rpartition(".")
        parent = self._root.get_submodule(parent_path)
        layer = self._layers[name]
        if getattr(parent, attribute) is not layer:
            raise ValueError(f"{name} was replaced by another module; the base carries a bank")
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        kind = MixedConv2d if isinstance(layer, nn.Conv2d) else MixedLinear
        setattr(parent, attribute, kind(layer, name, self._route))
        self._wrapped[name] = (parent, attribute)

    def close(self) -> None:
        """Restore the base's own layers. Idempotent."""
        for parent, attribute in self._wrapped.values():
            wrapper = getattr(parent, attribute)
            assert isinstance(wrapper, AdaptedLayer)
            setattr(parent, attribute, wrapper.base_layer)
        self._wrapped.clear()

    # -- passes -------------------------------------------------------------------------------

    @contextmanager
    def route_parts(self, parts: Sequence[RowPart]) -> Iterator[None]:
        """Within the context, the rows of passes use these adapters."""
        before = self._route.parts
        self._route.parts = parts
        try:
            yield
        finally:
            self._route.parts = before


def _room(rank: int) -> int:
    return max(SMALLEST_ROOM, 1 << (rank - 1).bit_length())
