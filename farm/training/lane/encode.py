"""A job's photos and prompts as tensors: ``JobSpec`` in, ``TrainingJob`` out.

Owns decoding, cropping and encoding, which are done once per job, not per step.
``prepare_photos`` runs in a thread beside the training, so it uses the VAE but not the denoiser.
``assemble_job`` encodes the prompts and runs in the training thread, because a bank may have
adapted the text encoder.

Legend: N crops, C channels, H W latent, P pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from farm.base.conditioning import Conditioning, TokenIds
from farm.base.interface import Base
from farm.errors import PhotoFault, StoreError
from farm.intake.job import JobSpec
from farm.intake.photos.bytes import read_photo_bytes
from farm.intake.photos.decode import crop_frames, crops, open_photo
from farm.keys import bytes_digest, derive_seed
from farm.recipe import LongPrompts
from farm.training.slots.job import PriorSet, TrainingJob

__all__ = ["EncodePrompts", "PreparedPhotos", "TrainingPrompts", "assemble_job", "prepare_photos"]

ENCODE_BATCH = 16
"""Crops that the VAE encodes at once: enough to be fast, few beside a training step."""

KEPT_PHOTOS = 12
"""Photos of one subject for the judge; more of them cost time and do not change the mean."""
KEPT_SIDE_PX = 336
"""Shorter side of those photos: the largest common CLIP input. 12 photos take about 5 MB."""

EncodePrompts = Callable[[Sequence[str], LongPrompts], tuple[TokenIds, Conditioning]]
"""Prompts to tokens on the CPU and their conditioning."""


@dataclass(frozen=True)
class PreparedPhotos:
    """The part of a job that needs no text encoder."""

    moments_N2CHW: Tensor
    """float32 on the CPU."""
    prompts: tuple[str, ...]
    """One for each crop, or one for all."""
    frames_N6: Tensor | None = None
    """int64 on the CPU, for bases that read them; see ``whole_frames``."""
    pictures: tuple[Image.Image, ...] = ()
    """Some of the photos for the judge, uncropped, upright and downscaled."""


def prepare_photos(base: Base, spec: JobSpec) -> PreparedPhotos:
    """Read, check, crop and encode a job's photos.

    Raises:
        PhotoFault: if a photo is missing, damaged, or not the one that was checked.
        StoreError: if its storage did not answer; a retry may succeed.
    """
    recipe = spec.subject.recipe
    cropped: list[NDArray[np.uint8]] = []
    frames: list[NDArray[np.int64]] = []
    kept: list[Image.Image] = []
    prompts: list[str] = []
    triples = zip(spec.subject.photos, spec.photo_digests, spec.photo_prompts, strict=True)
    for photo, sha256, prompt in triples:
        whole = open_photo(_checked_bytes(photo.uri, sha256))
        count, seed = recipe.crops_per_photo, derive_seed(recipe.seed, "crops", sha256)
        cut = crops(whole, spec.resolution_px, count, flip=recipe.flip, seed=seed)
        cropped.append(cut)
        frames.append(
            crop_frames(whole.size, spec.resolution_px, count, flip=recipe.flip, seed=seed)
        )
        prompts += [prompt] * len(cut)
        if len(kept) < KEPT_PHOTOS:
            kept.append(_small(whole))
    pixels_NPP3 = torch.from_numpy(np.concatenate(cropped))
    moments = [
        base.encode_photos(_as_pixels(pixels_NPP3[start : start + ENCODE_BATCH])).float().cpu()
        for start in range(0, len(pixels_NPP3), ENCODE_BATCH)
    ]
    distinct = tuple(prompts[:1]) if len(set(prompts)) == 1 else tuple(prompts)
    return PreparedPhotos(
        moments_N2CHW=torch.cat(moments),
        prompts=distinct,
        frames_N6=torch.from_numpy(np.concatenate(frames)) if base.uses_frames else None,
        pictures=tuple(kept),
    )


def _small(photo: Image.Image) -> Image.Image:
    """A photo downscaled for scorers: full-size photos would fill the host's memory."""
    scale = KEPT_SIDE_PX / min(photo.size)
    if scale >= 1:
        return photo
    width, height = (max(1, round(side * scale)) for side in photo.size)
    return photo.resize((width, height), Image.Resampling.LANCZOS)


def _checked_bytes(uri: str, sha256: str) -> bytes:
    try:
        data = read_photo_bytes(uri)
    except PhotoFault as fault:
        if _is_transient(fault.__cause__):
            raise StoreError(
                f"{uri}: {fault.message}", "check that this storage is reachable, then run again"
            ) from fault
        raise PhotoFault(f"{uri}: {fault.message}", fault.remedy) from fault
    if bytes_digest(data) != sha256:
        raise PhotoFault(
            f"{uri}: it is not the photo that was checked",
            "run the manifest again; a changed photo makes a new job",
        )
    return data


def _is_transient(cause: BaseException | None) -> bool:
    """Whether reading failed because of the network, not because of the file."""
    final = (FileNotFoundError, PermissionError, IsADirectoryError)
    return isinstance(cause, OSError | TimeoutError) and not isinstance(cause, final)


def _as_pixels(crops_NPP3: Tensor) -> Tensor:
    """uint8 [N, P, P, 3] to float32 [N, 3, P, P] in [-1, 1]."""
    return crops_NPP3.permute(0, 3, 1, 2).float() / 127.5 - 1


def assemble_job(
    spec: JobSpec, photos: PreparedPhotos, prior: PriorSet | None, encode: EncodePrompts
) -> TrainingJob:
    """Assemble a job from its parts; each distinct prompt is encoded once."""
    distinct = list(dict.fromkeys(photos.prompts))
    tokens, conditioning = encode(distinct, spec.subject.recipe.long_prompts)
    rows = [distinct.index(prompt) for prompt in photos.prompts]
    return TrainingJob(
        key=spec.key,
        recipe=spec.subject.recipe,
        seed=spec.subject.recipe.seed,
        instance_moments=photos.moments_N2CHW,
        instance_conditioning=conditioning[rows],
        instance_tokens=tokens[rows],
        instance_frames=photos.frames_N6,
        prior=prior,
    )


class TrainingPrompts:
    """Encodes prompts and caches recent ones: most subjects of a lane share their prompts."""

    def __init__(self, base: Base, capacity: int = 512) -> None:
        self._base, self._capacity = base, capacity
        self._kept: OrderedDict[tuple[str, int], tuple[TokenIds, Conditioning]] = OrderedDict()

    def __call__(
        self, prompts: Sequence[str], long_prompts: LongPrompts = "cut"
    ) -> tuple[TokenIds, Conditioning]:
        """Tokens on the CPU and conditioning of R prompts; see ``EncodePrompts``."""
        chunked = long_prompts == "chunk"
        found = [
            self._one(prompt, self._base.num_windows(prompt) if chunked else 1)
            for prompt in prompts
        ]
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        tokens = TokenIds.concatenate([tokens for tokens, _ in found])
        return tokens, Conditioning.concatenate([conditioning for _, conditioning in found])

    def _one(self, prompt: str, windows: int) -> tuple[TokenIds, Conditioning]:
        key = prompt, windows
        if key not in self._kept:
            tokens = self._base.tokenize([prompt], [windows])
            encoded = self._base.encode_prompts([prompt], [windows])
            self._kept[key] = (tokens.to("cpu"), encoded)
        self._kept.move_to_end(key)
        return self._kept[key]
