"""An edition of the embedded base: every size and hyperparameter of its models and training.

Imports nothing, so that processes that only render start quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["EDITION_128", "Edition", "Stage", "tiny_edition"]


@dataclass(frozen=True)
class Stage:
    """One stage of the training."""

    num_steps: int
    batch_size: int
    learning_rate: float
    num_pictures: int
    """Images of the album that the stage trains on, counted from the first."""
    share: float
    """Share of a time budget, waiting for images included."""


@dataclass(frozen=True)
class Edition:
    """Sizes of an edition. The autoencoder downsamples by 8."""

    name: str
    picture_px: int
    latent_channels: int
    vae_channels: tuple[int, ...]
    """One level each; the first is at full resolution, and each of the others halves it."""
    unet_channels: tuple[int, ...]
    attention_heads: int
    scorer_width: int
    scorer_layers: int
    """Of the scorer's image tower. A patch is an eighth of the image's side."""
    vae: Stage
    scorer: Stage
    denoiser: Stage
    num_captions: int = 4
    """Captions of each image; the last one is short."""
    mark_share: float = 0.5
    """Share of the scenes with a mark."""
    hard_nouns: tuple[str, ...] = ("fish", "teapot")
    """Classes whose shapes are learned last; `hard_share` of the scenes show one of them in place
    of their own class."""
    hard_share: float = 0.12
    identifier_share: float = 0.15
    """Share of the captions with a rare token before the class noun. It means nothing: the base
    then reads `sks cat` as some cat, and its text encoder does not drop the token."""
    identifier_margin: float = 0.5
    """Relative distance that a rare token must make in a prompt's embedding."""
    empty_share: float = 0.1
    """Share of empty prompts, for classifier-free guidance."""
    middle_share: float = 0.5
    """Share of the timesteps in the middle of the schedule, where the layout is decided."""
    decay_share: float = 0.4
    """Final share of the denoiser's steps, over which its rate falls to zero."""
    average_decay: float = 0.999

    @property
    def latent_px(self) -> int:
        """Side of the latents."""
        return self.picture_px // 8

    @property
    def num_pictures(self) -> int:
        """Images that are rendered in all."""
        return max(stage.num_pictures for stage in (self.vae, self.scorer, self.denoiser))

    def scaled(self, share: float) -> Edition:
        """The same sizes with a share of the steps and images, at least one batch of each."""

        def part(stage: Stage) -> Stage:
            pictures = max(stage.batch_size, round(stage.num_pictures * share))
            steps = max(2, round(stage.num_steps * share))
            return replace(stage, num_steps=steps, num_pictures=pictures)

        return replace(
            self, vae=part(self.vae), scorer=part(self.scorer), denoiser=part(self.denoiser)
        )


EDITION_128 = Edition(
    name="embedded-128",
    picture_px=128,
    latent_channels=12,
    vae_channels=(24, 48, 96, 96),
    unet_channels=(64, 96, 144),
    attention_heads=4,
    scorer_width=128,
    scorer_layers=4,
    vae=Stage(12_000, 64, 2e-3, 24_000, 0.26),
    scorer=Stage(8_000, 512, 1.5e-3, 64_000, 0.2),
    denoiser=Stage(30_000, 512, 1.5e-3, 200_000, 0.46),
)
"""The second edition. 30,000 steps of 512 rows are eleven times the first edition's images."""


def tiny_edition() -> Edition:
    """Sizes at which the whole training takes seconds; for tests."""
    stage = Stage(3, 8, 1e-3, 32, 0.3)
    return Edition(
        name="embedded-tiny",
        picture_px=32,
        latent_channels=4,
        vae_channels=(8, 8, 8, 8),
        unet_channels=(8, 16),
        attention_heads=2,
        scorer_width=32,
        scorer_layers=1,
        vae=stage,
        scorer=stage,
        denoiser=replace(stage, num_pictures=48),
    )
