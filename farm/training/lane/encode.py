"""A job's photos and prompts as tensors: ``JobSpec`` in, ``TrainingJob`` out.

Owns decoding, cropping and encoding, once per job, never per step. Runs in a thread beside the
training, so it touches the VAE and never the denoiser; the text encoder is asked last and through
a function, because a bank may sit on it.

Legend: N crops, C channels, H W latent, P pixels, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from farm.base.interface import Base, Conditioning
from farm.errors import StoreError
from farm.intake.errors import PhotoFault
from farm.intake.job import JobSpec
from farm.intake.photos.bytes import read_photo_bytes
from farm.intake.photos.decode import crops, open_photo
from farm.keys import bytes_digest, derive_seed
from farm.training.slots.job import PriorSet, TrainingJob

__all__ = ["PreparedPhotos", "EncodePrompts", "assemble_job", "prepare_photos"]

ENCODE_BATCH = 16
"""Crops that the VAE encodes at once: enough to be quick, little beside a training step."""

KEPT_PHOTOS = 12
"""Photos of one subject that the judge compares with: more change no mean, and cost embedding."""
KEPT_SIDE_PX = 336
"""Shorter side of those photos: what the largest usual CLIP reads. 12 of them take about 5 MB."""

EncodePrompts = Callable[[Sequence[str]], tuple[Tensor, Conditioning]]
"""Prompts to tokens [R, T] on the CPU and their conditioning."""


@dataclass(frozen=True)
class PreparedPhotos:
    """The part of a job that needs no text encoder."""

    moments_N2CHW: Tensor
    """float32 on the CPU."""
    prompts: tuple[str, ...]
    """One for each crop, or one for all."""
    pictures: tuple[Image.Image, ...] = ()
    """Some of the photos, whole, upright and small: what the judge compares with."""


def prepare_photos(base: Base, spec: JobSpec) -> PreparedPhotos:
    """Read, check, crop and encode a job's photos.

    Raises:
        PhotoFault: if a photo is gone, damaged, or not the one that was checked: the user's.
        StoreError: if the place where it lies did not answer: another try may succeed.
    """
    recipe = spec.subject.recipe
    pictures: list[NDArray[np.uint8]] = []
    kept: list[Image.Image] = []
    prompts: list[str] = []
    triples = zip(spec.subject.photos, spec.photo_digests, spec.photo_prompts, strict=True)
    for photo, sha256, prompt in triples:
        whole = open_photo(_checked_bytes(photo.uri, sha256))
        cut = crops(
            whole,
            spec.resolution_px,
            recipe.crops_per_photo,
            flip=recipe.flip,
            seed=derive_seed(recipe.seed, "crops", sha256),
        )
        pictures.append(cut)
        prompts += [prompt] * len(cut)
        if len(kept) < KEPT_PHOTOS:
            kept.append(_small(whole))
    pixels_NPP3 = torch.from_numpy(np.concatenate(pictures))
    moments = [
        base.encode_photos(_as_pixels(pixels_NPP3[start : start + ENCODE_BATCH])).float().cpu()
        for start in range(0, len(pixels_NPP3), ENCODE_BATCH)
    ]
    same = len(set(prompts)) == 1
    said = (prompts[0],) if same else tuple(prompts)
    return PreparedPhotos(torch.cat(moments), said, tuple(kept))


def _small(photo: Image.Image) -> Image.Image:
    """A photo as scorers need it: full-size ones of many slots would fill the host's memory."""
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
                f"{uri}: {fault.message}", "see whether that place answers, and run again"
            ) from fault
        raise PhotoFault(f"{uri}: {fault.message}", fault.remedy) from fault
    if bytes_digest(data) != sha256:
        raise PhotoFault(
            f"{uri}: it is not the photo that was checked",
            "run the manifest again; a changed photo makes a new job",
        )
    return data


def _is_transient(cause: BaseException | None) -> bool:
    """Whether reading failed for the network's sake, rather than for what stands there."""
    final = (FileNotFoundError, PermissionError, IsADirectoryError)
    return isinstance(cause, OSError | TimeoutError) and not isinstance(cause, final)


def _as_pixels(crops_NPP3: Tensor) -> Tensor:
    """uint8 [N, P, P, 3] to float32 [N, 3, P, P] in [-1, 1]."""
    return crops_NPP3.permute(0, 3, 1, 2).float() / 127.5 - 1


def assemble_job(
    spec: JobSpec, photos: PreparedPhotos, prior: PriorSet | None, encode: EncodePrompts
) -> TrainingJob:
    """Put the parts of a job together; asks for its distinct prompts only once."""
    distinct = list(dict.fromkeys(photos.prompts))
    tokens_DT, conditioning = encode(distinct)
    rows = [distinct.index(prompt) for prompt in photos.prompts]
    return TrainingJob(
        key=spec.key,
        recipe=spec.subject.recipe,
        seed=spec.subject.recipe.seed,
        instance_moments=photos.moments_N2CHW,
        instance_conditioning=conditioning[rows],
        instance_tokens=tokens_DT[rows],
        prior=prior,
    )
