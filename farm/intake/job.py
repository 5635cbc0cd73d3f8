"""Jobs and prior sets, named by their content.

Owns which inputs determine a result, and therefore a key. Pure: digests come in as arguments, and
nothing is read. Training turns a ``JobSpec`` into tensors; the ledger records what happened to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from farm.intake.subject import Photo, Subject
from farm.keys import key_of
from farm.recipe import Recipe
from farm.schedulers import SchedulerName

__all__ = ["JobSpec", "PriorSpec", "job_spec"]


class PriorSpec(BaseModel):
    """One prior set: class images drawn by the untouched base, or brought by the user."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base_fingerprint: str
    """Of the base that draws them and whose VAE encodes them."""
    class_prompt: str
    """What is drawn, and what the prior rows are conditioned on."""
    num_images: int = Field(ge=1)
    """Images in the set."""
    resolution_px: int = Field(ge=1)
    """Side of the square images."""
    scheduler: SchedulerName = "base"
    """Sampler of the drawing."""
    steps: int = Field(25, ge=1)
    """Denoising steps of each image."""
    guidance: float = Field(5.0, ge=1)
    """Classifier-free guidance scale."""
    seed: int = Field(0, ge=0)
    """Root of the images' seeds: image i has ``derive_seed(seed, "prior", i)``."""
    image_uris: tuple[str, ...] = ()
    """The user's own class images; then nothing is drawn. Places, so not part of the key."""
    image_digests: tuple[str, ...] = ()
    """sha256 of those images' bytes, in the order of ``image_uris``."""

    @property
    def is_brought(self) -> bool:
        """Whether the user brought the images."""
        return bool(self.image_digests)

    @property
    def key(self) -> str:
        """32 hex digits over what determines the set; how it would have been drawn does not
        matter to images that were brought."""
        if self.is_brought:
            return key_of(
                "prior-brought",
                base=self.base_fingerprint,
                class_prompt=self.class_prompt,
                resolution_px=self.resolution_px,
                images=list(self.image_digests),
            )
        return key_of(
            "prior",
            base=self.base_fingerprint,
            class_prompt=self.class_prompt,
            num_images=self.num_images,
            resolution_px=self.resolution_px,
            scheduler=self.scheduler,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed,
        )


class JobSpec(BaseModel):
    """One subject under one recipe and one base. Picklable, and JSON both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    key: str
    """32 hex digits over exactly what determines the adapter; not over id, name, namespace,
    priority or sample prompts."""
    subject: Subject
    """With its photos in the job's order: by digest, each content once."""
    photo_digests: tuple[str, ...]
    """sha256 of each photo's bytes, in the order of ``subject.photos``."""
    base_fingerprint: str
    """Of the base that is adapted."""
    resolution_px: int
    """Side of the training crops."""
    prior: PriorSpec | None
    """The prior set it trains against; None without prior preservation."""

    @property
    def prior_key(self) -> str | None:
        """The key of its prior set, if it has one."""
        return self.prior.key if self.prior is not None else None

    @property
    def photo_prompts(self) -> tuple[str, ...]:
        """What each photo is trained on, ``[V]`` replaced, in the order of the photos."""
        return self.subject.photo_prompts


def job_spec(
    subject: Subject,
    photo_digests: Sequence[str],
    *,
    base_fingerprint: str,
    resolution_px: int,
    class_image_digests: Sequence[str] = (),
) -> JobSpec:
    """Make the job of a subject on a base.

    Photos are put in the order of their content and equal ones are taken once, so that neither
    file names nor copies change a key or an adapter.

    Args:
        photo_digests: sha256 of each of ``subject.photos``, in their order.
        resolution_px: the base's own side; the recipe's wins where it names one.
        class_image_digests: sha256 of each of ``subject.class_images``, in their order.

    Raises:
        ValueError: if the digests do not match the photos or the class images in number.
    """
    if len(photo_digests) != len(subject.photos):
        raise ValueError(f"{len(photo_digests)} digests for {len(subject.photos)} photos")
    if len(class_image_digests) != len(subject.class_images):
        raise ValueError(
            f"{len(class_image_digests)} digests for {len(subject.class_images)} class images"
        )
    subject, digests = _in_content_order(subject, photo_digests)
    resolution_px = subject.recipe.resolution_px or resolution_px
    prior = _prior_spec(subject, base_fingerprint, resolution_px, class_image_digests)
    key = key_of(
        "job",
        base=base_fingerprint,
        resolution_px=resolution_px,
        identifier=subject.identifier,
        photos=[list(pair) for pair in zip(digests, subject.photo_prompts, strict=True)],
        prior=prior.key if prior is not None else None,
        recipe=_recipe_inputs(subject.recipe),
    )
    return JobSpec(
        key=key,
        subject=subject,
        photo_digests=digests,
        base_fingerprint=base_fingerprint,
        resolution_px=resolution_px,
        prior=prior,
    )


def _in_content_order(
    subject: Subject, photo_digests: Sequence[str]
) -> tuple[Subject, tuple[str, ...]]:
    """The subject with its photos by (digest, prompt), each pair once, and their digests."""
    ordered: dict[tuple[str, str], Photo] = {}
    pairs = zip(photo_digests, subject.photo_prompts, strict=True)
    for pair, photo in zip(pairs, subject.photos, strict=True):
        ordered.setdefault(pair, photo)
    content = sorted(ordered)
    photos = tuple(ordered[pair] for pair in content)
    return subject.model_copy(update={"photos": photos}), tuple(digest for digest, _ in content)


def _recipe_inputs(recipe: Recipe) -> dict[str, object]:
    """The recipe's fields that determine the adapter, each in the one form equal recipes share."""
    inputs: dict[str, object] = recipe.model_dump(mode="json")
    inputs["alpha"] = recipe.alpha if recipe.alpha is not None else float(recipe.rank)
    # stand in the key of their own: the job's resolution, the prior set's count
    aside = ["resolution_px", "num_prior_images"]
    if not recipe.uses_prior:
        aside += ["prior_rows", "prior_weight"]
    if not recipe.keep_best:
        # how often the job is saved or shown changes nothing but what there is to choose from
        aside += ["checkpoint_every", "sample_every"]
    return {field: value for field, value in inputs.items() if field not in aside}


def _prior_spec(
    subject: Subject,
    base_fingerprint: str,
    resolution_px: int,
    class_image_digests: Sequence[str],
) -> PriorSpec | None:
    """The prior set of a subject on a base; None where its recipe preserves no prior."""
    if not subject.recipe.uses_prior:
        return None
    brought = dict(sorted(zip(class_image_digests, subject.class_images, strict=True)))
    return PriorSpec(
        base_fingerprint=base_fingerprint,
        class_prompt=subject.class_prompt,
        num_images=len(brought) or subject.recipe.num_prior_images,
        resolution_px=resolution_px,
        **subject.prior.model_dump(),
        image_uris=tuple(brought.values()),
        image_digests=tuple(brought),
    )
