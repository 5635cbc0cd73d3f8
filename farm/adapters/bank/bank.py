"""The bank: S adapter slots of one shape over one frozen base, for training and scoring.

Owns the stacked weights, the wrapping of the base's layers and the routing of rows to slots. Does
not train, generate or read files. Serving uses ``MixedBank``, whose slots differ in shape. Setting,
clearing and reading a slot copies numbers in place: no module, shape or address changes, so a
compiled step or a captured CUDA graph stays valid.

The weights of all layers are stored in one flat tensor [Z, P], all down halves before all up
halves; layers hold views of it. An optimiser step, a gradient clip, a NaN check or a checkpoint is
therefore one operation over rows. Row S is always zero: the adapter of rows without one. The rows
beyond it keep copies of slots, from which images are generated while the slots train.

Legend: S slots, F kept rows, Z = S + 1 + F, P parameters per slot, R rows, K adapters per row,
I inputs, O outputs, r rank (the bank's maximum; adapters of lower rank leave the last columns
zero).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from farm.adapters.bank.attention import share_attention_inputs
from farm.adapters.bank.grouped import Kernel
from farm.adapters.bank.layers import (
    BankConv2d,
    BankLayer,
    BankLinear,
    DownBlock,
    Route,
    StackedWeights,
)
from farm.adapters.bank.layout import (
    LayerPlace,
    check_fits,
    component_columns,
    cross_attentions,
    denoiser_layers,
    lay_out,
    shares_inputs,
    text_layers,
)
from farm.adapters.bank.scales import Scales
from farm.adapters.bank.turns import Turns
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.device.transfer import sent
from farm.base.generate import Routing
from farm.base.interface import Base
from farm.keys import derive_seed

__all__ = ["Bank"]


class Bank(nn.Module):
    """Stacked LoRA slots on the chosen layers of a base."""

    flat_ZP: Tensor
    """The master weights: all slots and the zero adapter."""

    def __init__(
        self,
        base: Base,
        *,
        num_slots: int,
        max_rank: int,
        target_modules: Sequence[str],
        text_encoder_modules: Sequence[str] = (),
        dtype: torch.dtype | None = None,
        trainable: bool = False,
        num_kept: int = 0,
    ) -> None:
        """Wrap the base's layers. ``close`` unwraps them; a base can have one bank at a time.

        Args:
            target_modules: endings of the denoiser's module names, such as ``to_q``.
            text_encoder_modules: the same for the text encoders; see ``text_layers``.
            dtype: dtype of the stored weights; None means float32 for training, else the base's.
            trainable: whether the grouped route keeps gradients (in ``grad_SP``).
            num_kept: rows for copies of slots; see ``keep``.

        Raises:
            UserError: if an ending matches no linear or convolution layer.
        """
        super().__init__()
        if num_slots < 1 or max_rank < 1:
            raise ValueError("a bank needs at least one slot and one rank")
        self.base = [base]  # in a list: the base's modules are not the bank's children
        self.num_slots, self.max_rank, self.num_kept = num_slots, max_rank, num_kept
        self.turns = Turns()
        """Held within every routing; also for other uses of the layers by several threads."""
        self.trainable = trainable
        self.dtype = dtype or (torch.float32 if trainable else base.dtype)
        self.compute_dtype = base.dtype
        chosen = denoiser_layers(base, target_modules) | text_layers(base, text_encoder_modules)
        shares = trainable and shares_inputs(base.device)
        crossed = cross_attentions(base)
        self.places = lay_out(chosen, max_rank, shares=shares, cross_attentions=crossed)
        self._in_order = list(self.places.values())
        self.num_parameters = sum(
            (place.num_inputs + place.num_outputs) * max_rank for place in self.places.values()
        )
        self.columns = component_columns(self.places, base.denoiser_name, self.num_parameters)
        self._allocate(base.device)
        self._alphas: list[dict[str, float]] = [{} for _ in range(num_slots)]
        self._ranks: list[dict[str, int]] = [{} for _ in range(num_slots)]
        self._route = Route()
        self._wrap_all(chosen)

    def _wrap_all(self, chosen: Mapping[str, nn.Module]) -> None:
        self._wrapped: dict[str, tuple[nn.Module, str]] = {}
        self._blocks: dict[int, DownBlock] = {}
        self._leaves: dict[int, Tensor] = {}  # by their start in a flat row
        for index, (name, layer) in enumerate(chosen.items()):
            self._wrap(name, layer, self._stacked(index, self.places[name]))
        denoiser = self.base[0].components[self.base[0].denoiser_name]
        self._attentions = share_attention_inputs(denoiser)

    # -- storage ------------------------------------------------------------------------------

    def _allocate(self, device: torch.device) -> None:
        shape = (self.num_slots + 1 + self.num_kept, self.num_parameters)
        self.register_buffer(
            "flat_ZP", torch.zeros(shape, dtype=self.dtype, device=device), persistent=False
        )
        # what the layers read: the master itself if the dtypes agree, else a cast of it
        shares = self.dtype == self.compute_dtype
        self._compute_ZP = self.flat_ZP if shares else self.flat_ZP.to(self.compute_dtype)
        self._scales = Scales(
            self.num_slots,
            len(self.places),
            down_size=min(place.up_start for place in self._in_order),
            like=self._compute_ZP,
            folds=not shares,
            num_kept=self.num_kept,
        )
        self.grad_SP: Tensor | None = None
        if self.trainable:
            self.grad_SP = torch.zeros_like(self._compute_ZP[: self.num_slots])

    def _stacked(self, index: int, place: LayerPlace) -> StackedWeights:
        down, up = self._views(self._compute_ZP, place)
        block = self._blocks.get(place.block_start)
        if block is None:
            of_block = self._block_view(self._compute_ZP[: self.num_slots], place)
            block = DownBlock(self._leaf(of_block, place.block_start), place.block_layers)
            self._blocks[place.block_start] = block
        slots_up = self._leaf(up[: self.num_slots], place.up_start)
        scale_Z = self._scales.scale_LZ[index]
        return StackedWeights(block, place.block_place, slots_up, down, up, scale_Z)

    def _leaf(self, view: Tensor, start: int) -> Tensor:
        self._leaves[start] = view.detach().requires_grad_(self.trainable)
        return self._leaves[start]

    def _block_view(self, flat: Tensor, place: LayerPlace) -> Tensor:
        """The down halves [rows, I, k] of the layers that share this layer's input."""
        width = place.block_layers * self.max_rank
        block = flat[:, place.block_start : place.block_start + place.num_inputs * width]
        return block.view(flat.shape[0], -1, width)

    def _views(self, flat: Tensor, place: LayerPlace) -> tuple[Tensor, Tensor]:
        """Down [rows, I, r] and up [rows, r, O] of one layer in a flat tensor [rows, P]."""
        rank, rows = self.max_rank, flat.shape[0]
        first = place.block_place * rank
        up = flat[:, place.up_start : place.up_start + place.num_outputs * rank]
        down = self._block_view(flat, place)[:, :, first : first + rank]
        return down, up.view(rows, rank, -1)

    def _down(self, flat: Tensor, index: int) -> Tensor:
        return self._views(flat, self._in_order[index])[0]

    def _wrap(self, name: str, layer: nn.Module, stacked: StackedWeights) -> None:
        kind = BankConv2d if isinstance(layer, nn.Conv2d) else BankLinear
        component, path = name.split(".", 1)
        root = self.base[0].components[component]
        parent_path, _, attribute = path.rpartition(".")
        parent = root.get_submodule(parent_path)
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        setattr(parent, attribute, kind(layer, self._route, stacked))
        self._wrapped[name] = (parent, attribute)

    def close(self) -> None:
        """Restore the base's own layers and stop routing. Idempotent."""
        for parent, attribute in self._wrapped.values():
            wrapper = getattr(parent, attribute)
            assert isinstance(wrapper, BankLayer)
            setattr(parent, attribute, wrapper.base_layer)
        self._wrapped.clear()
        for attention in self._attentions:
            attention.processor = attention.processor.original
        self._attentions.clear()

    # -- training -----------------------------------------------------------------------------

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the master weights to the tensor that the layers read, after a bulk change."""
        if self._compute_ZP is not self.flat_ZP:
            self._scales.fold(self._compute_ZP, self.flat_ZP, self._down)

    def backward(self, loss: Tensor) -> None:
        """Write the loss's gradients into ``grad_SP``, replacing what it held.

        One concatenation writes all of them. Autograd's own accumulation would add each layer's
        gradient to its part of the tensor, which costs a kernel per layer and zeroing.
        """
        assert self.grad_SP is not None, "the bank does not train"
        leaves = [self._leaves[start] for start in sorted(self._leaves)]  # as in the flat row
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        torch.cat([grad.flatten(1) for grad in grads], 1, out=self.grad_SP)

    def unfold_gradients(self, grad_SP: Tensor) -> None:
        """From gradients of the weights that layers read to those of the master, in place."""
        self._scales.unfold_gradients(grad_SP, self._down)

    @property
    def scale_kinds(self) -> tuple[object, ...]:
        """How alpha / rank is applied; a captured pass is valid for one answer only."""
        return self._scales.kinds

    def use_kernel(self, kernel: Kernel) -> None:
        """Choose how grouped products are computed."""
        self._route.kernel = kernel

    # -- routing ------------------------------------------------------------------------------

    @contextmanager
    def route(self, slots_R: Tensor, weights_RK: Tensor | None = None) -> Iterator[None]:
        """Within the context, each row of a pass uses its own slots; -1 means no adapter.

        Args:
            slots_R: int64 [R], or [R, K] for several adapters per row.
            weights_RK: factors on the adapters, the shape of ``slots_R``; None means 1.

        A captured CUDA graph reads the tensors passed here if they are on the device and have no
        negative entries: keep them, change them in place, and use ``num_slots`` instead of -1.
        """
        slots_RK = slots_R.unsqueeze(1) if slots_R.ndim == 1 else slots_R
        device = self.flat_ZP.device
        if slots_RK.device != device or device.type == "cpu":
            if int(slots_RK.max()) > self.num_slots + self.num_kept or int(slots_RK.min()) < -1:
                raise ValueError(f"slots must be in -1..{self.num_slots}")
            # -1 and S both index row S, the zero adapter
            slots_RK = sent(torch.where(slots_RK < 0, self.num_slots, slots_RK), device)
        if weights_RK is not None:
            weights_RK = sent(weights_RK.reshape(slots_RK.shape), device)
        with self._entered("gathered", slots_RK, weights_RK):
            yield

    @contextmanager
    def route_grouped(self, rows_per_slot: int) -> Iterator[None]:
        """Within the context, rows are ``num_slots`` equal groups in slot order, without copies.

        Backward passes with gradient checkpointing must also run inside, because they run layers
        again.
        """
        if rows_per_slot < 1:
            raise ValueError("every slot needs at least one row")
        with self._entered("grouped", None, None):
            yield

    @contextmanager
    def _entered(
        self, mode: str, slots_RK: Tensor | None, weights_RK: Tensor | None
    ) -> Iterator[None]:
        with self.turns:
            route, scales = self._route, self._scales
            before = (route.mode, route.slots_RK, route.weights_RK, route.has_scale)
            route.mode, route.slots_RK, route.weights_RK = mode, slots_RK, weights_RK  # type: ignore[assignment]
            route.has_scale = scales.applies_late or (mode == "gathered" and scales.kept_late)
            try:
                yield
            finally:
                route.mode, route.slots_RK, route.weights_RK, route.has_scale = before

    def image_routing(self, slots: Sequence[int] | Tensor) -> Routing:
        """For ``farm.base.generate``: image i uses slot (or row of slots) ``slots[i]``."""
        slots_P = torch.as_tensor(slots, dtype=torch.int64)

        return lambda images_R: self.route(slots_P[images_R])

    # -- slots --------------------------------------------------------------------------------

    @torch.no_grad()
    def set_slot(self, slot: int, weights: AdapterWeights) -> None:
        """Copy an adapter into a slot; layers missing from it become zero.

        Raises:
            AdapterFileError: if it has layers that the bank lacks, other shapes, or a larger rank.
        """
        self.check_fits(weights)
        row_P = torch.zeros(self.num_parameters, dtype=self.dtype)
        scales = [0.0] * len(self.places)
        for index, (name, place) in enumerate(self.places.items()):
            layer = weights.layers.get(name)
            if layer is None:
                continue
            down, up = self._views(row_P.unsqueeze(0), place)
            down[0, :, : layer.rank] = layer.down.detach().flatten(1).T.to(row_P)
            up[0, : layer.rank] = layer.up.detach().flatten(1).T.to(row_P)
            scales[index] = weights.scale(name)
        self._scales.set(self._checked(slot), scales)
        self.write_row(slot, row_P)
        self._alphas[slot] = dict(weights.alphas)
        self._ranks[slot] = {name: layer.rank for name, layer in weights.layers.items()}

    @torch.no_grad()
    def clear_slot(self, slot: int) -> None:
        """Reset a slot to the base model, without an adapter."""
        self.flat_ZP[self._checked(slot)].zero_()
        self._compute_ZP[slot].zero_()
        self._scales.clear(slot)
        self._alphas[slot], self._ranks[slot] = {}, {}

    @torch.no_grad()
    def keep(self, slot: int, place: int) -> int:
        """Copy a slot to a kept row; returns the row, which ``route`` takes like a slot."""
        row = self.num_slots + 1 + place
        self.flat_ZP[row].copy_(self.flat_ZP[self._checked(slot)])
        if self._compute_ZP is not self.flat_ZP:
            self._compute_ZP[row].copy_(self._compute_ZP[slot])
        self._scales.keep(slot, place)
        return row

    @torch.no_grad()
    def slot_weights(self, slot: int) -> AdapterWeights:
        """A CPU copy of a slot's adapter, at its own rank."""
        return self.unpack(slot, self.flat_ZP[self._checked(slot)])

    def init_slot(self, slot: int, rank: int, alpha: float, seed: int) -> None:
        """Initialise a new adapter: down normal with deviation 1/rank, up zero.

        This is peft's "gaussian" initialisation, used by the diffusers scripts. Each layer has its
        own random stream ``(seed, "init", name)`` on the CPU, in the shape of peft's A.
        """
        layers = {}
        for name, place in self.places.items():
            generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
            num_inputs = place.num_inputs
            shape: tuple[int, ...] = (rank, num_inputs)
            up_shape: tuple[int, ...] = (place.num_outputs, rank)
            if place.kernel:
                channels = num_inputs // (place.kernel[0] * place.kernel[1])
                shape, up_shape = (rank, channels, *place.kernel), (*up_shape, 1, 1)
            down = torch.randn(shape, generator=generator) / rank
            layers[name] = LayerWeights(down, torch.zeros(up_shape))
        self.set_slot(slot, AdapterWeights.with_alpha(layers, alpha))

    def pack(self, weights: AdapterWeights) -> Tensor:
        """An adapter as one flat row [P] on the CPU, in the bank's layout and dtype.

        Optimiser moments have the same shape and use this too.
        """
        row_P = torch.zeros(self.num_parameters, dtype=self.dtype)
        for name, layer in weights.layers.items():
            down, up = self._views(row_P.unsqueeze(0), self.places[name])
            down[0, :, : layer.rank] = layer.down.flatten(1).T
            up[0, : layer.rank] = layer.up.flatten(1).T
        return row_P

    @torch.no_grad()
    def write_row(self, slot: int, row_P: Tensor) -> None:
        """Replace a slot's weights with a flat row [P]; its ranks and alphas stay."""
        self.flat_ZP[self._checked(slot)].copy_(sent(row_P, self.flat_ZP.device))
        if self._compute_ZP is not self.flat_ZP:
            self._scales.fold_slot(slot, self._compute_ZP, self.flat_ZP, self._down)

    def unpack(self, slot: int, row_P: Tensor) -> AdapterWeights:
        """A flat row [P] as an adapter, with the slot's current ranks and alphas."""
        row_P = row_P.detach().cpu()
        layers = {}
        for name, rank in self._ranks[self._checked(slot)].items():
            place = self.places[name]
            down, up = self._views(row_P.unsqueeze(0), place)
            down_rI = down[0, :, :rank].T.clone(memory_format=torch.contiguous_format)
            up_Or = up[0, :rank].T.clone(memory_format=torch.contiguous_format)
            if place.kernel:
                down_rI = down_rI.view(rank, -1, *place.kernel)
                up_Or = up_Or.view(-1, rank, 1, 1)
            layers[name] = LayerWeights(down_rI, up_Or)
        return AdapterWeights(layers, dict(self._alphas[slot]))

    # -- checks -------------------------------------------------------------------------------

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} of a bank with {self.num_slots}")
        return slot

    def check_fits(self, weights: AdapterWeights) -> None:
        """Reject an adapter that does not fit into a slot.

        Raises:
            AdapterFileError: if it has layers that the bank lacks, other shapes, or a larger rank.
        """
        check_fits(weights, self.places, self.max_rank)
