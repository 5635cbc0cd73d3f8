"""The arrays of a prior set: generated on a base, and handed to the trainer.

Owns how one part is generated and encoded, and how a stored set becomes tensors again. The files
are in ``storage``. Uses no Ray.

Legend: M images, C channels, H W latent, P pixels, T tokens, D width.
"""

from __future__ import annotations

import numpy as np
import torch

from farm.base.conditioning import MASK, Conditioning, TokenIds
from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.errors import PhotoFault, UserError
from farm.intake.job import PriorSpec
from farm.intake.photos.bytes import read_photo_bytes
from farm.intake.photos.decode import crop_frames, crops, open_photo
from farm.keys import bytes_digest, derive_seed
from farm.training.priors.storage import FIRST_TOKENS, Array, Arrays, Part, PriorArrays
from farm.training.slots.job import PriorSet

__all__ = ["as_prior_set", "generate_part"]

GENERATION_BATCH = 16
"""Images generated together; fixed, so that a rerun repeats exactly the same passes."""


def generate_part(base: Base, spec: PriorSpec, part: Part) -> PriorArrays:
    """Generate the images of one part, or read the user's own, and encode them.

    Returns:
        ``id`` and ``seed`` int64 [M], ``image`` uint8 [M, P, P, 3], ``moments`` [M, 2, C, H, W] in
        float32, or float16 where the base's own precision is half; ``frames`` [M, 6] of the user's
        own images, for bases that read them.

    Raises:
        UserError: if one of the user's own images is not the one that was checked.
    """
    ids = range(part.first, part.stop)
    seeds = [derive_seed(spec.seed, "prior", number) for number in ids]
    frames: PriorArrays = {}
    if spec.is_brought:
        brought = [_user_image(spec, number) for number in ids]
        images_MPP3 = torch.from_numpy(np.stack([image for image, _ in brought]))
        if base.uses_frames:
            frames["frames"] = np.stack([frame for _, frame in brought])
    else:
        images_MPP3 = generate_images(
            base,
            [spec.class_prompt] * len(seeds),
            seeds,
            batch=GENERATION_BATCH,
            steps=spec.steps,
            guidance=spec.guidance,
            width_px=spec.resolution_px,
            height_px=spec.resolution_px,
            scheduler=spec.scheduler,
        )
    starts = range(0, len(images_MPP3), GENERATION_BATCH)
    moments = [_encode(base, images_MPP3[start : start + GENERATION_BATCH]) for start in starts]
    return {
        "id": np.arange(part.first, part.stop, dtype=np.int64),
        "seed": np.asarray(seeds, dtype=np.int64),
        "image": images_MPP3.numpy(),
        "moments": torch.cat(moments).numpy(),
        **frames,
    }


def _encode(base: Base, images_MPP3: torch.Tensor) -> torch.Tensor:
    pixels_M3PP = images_MPP3.permute(0, 3, 1, 2).float() / 127.5 - 1
    kept = torch.float32 if base.dtype == torch.float32 else torch.float16
    return base.encode_photos(pixels_M3PP).to("cpu", kept)


def _user_image(spec: PriorSpec, number: int) -> tuple[Array, Array]:
    """The centre crop of one of the user's own class images, uint8 [P, P, 3], and its frame."""
    uri = spec.image_uris[number]
    try:
        data = read_photo_bytes(uri)
        if bytes_digest(data) != spec.image_digests[number]:
            raise PhotoFault("it changed since it was checked", "run `farm check` again")
        whole = open_photo(data)
        crop: Array = crops(whole, spec.resolution_px)[0]
    except PhotoFault as error:
        raise UserError(f"class image {uri}: {error.message}", error.remedy) from error
    return crop, crop_frames(whole.size, spec.resolution_px)[0]


def as_prior_set(arrays: Arrays, base: Base) -> PriorSet:
    """The arrays as the trainer takes them; the moments are not copied."""
    extra, tokens = {}, {}
    for column, value in arrays.items():
        kind, _, name = column.partition(".")
        if kind == "extra":
            extra[name] = torch.from_numpy(np.array(value)).to(base.device, base.dtype)
        elif kind == "tokens":
            tokens[name or FIRST_TOKENS] = torch.from_numpy(np.array(value)).long()
    if MASK in extra:
        extra[MASK] = extra[MASK].bool()
    hidden_1TD = torch.from_numpy(np.array(arrays["hidden"])).to(base.device, base.dtype)
    frames = torch.from_numpy(np.array(arrays["frames"])) if "frames" in arrays else None
    conditioning = Conditioning(hidden_1TD, extra)
    return PriorSet(arrays["moments"], conditioning, TokenIds(tokens), frames)
