"""The losses of an edition's three stages, on any device.

Legend: N images, K captions, T tokens, F facts, M texts, C H W latent, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize, relu
from transformers import CLIPModel, CLIPTokenizer

from farm.base.embedded.denoiser import MIDDLE_TIMESTEPS, NUM_TRAIN_TIMESTEPS
from farm.base.embedded.scorer import article, contrastive_loss, encode_texts
from farm.base.embedded.world.captions import FACTS, UNSTATED
from farm.base.embedded.world.words import CLASS_NOUNS, MARKS, POSES, POSES_OF, RARE_TOKENS

__all__ = ["QUESTIONS", "Identifiers", "Questions", "denoiser_loss", "scorer_loss", "vae_loss"]

QUESTIONS = (
    [article(noun) for noun in CLASS_NOUNS]
    + [f"{article(noun)} {pose}" for noun in CLASS_NOUNS for pose in POSES_OF[noun]]
    + [
        f"{article(noun)} with {mark if mark == 'stripes' else article(mark)}"
        for noun in CLASS_NOUNS
        for mark in MARKS
    ]
)
"""`a cat` for each class, `a cat sitting` for each pose, `a cat with a star` for each mark."""


def vae_loss(vae: AutoencoderKL, pictures_N3PP: Tensor, generator: torch.Generator) -> Tensor:
    """Squared error, 0.02 of absolute error and a very small KL term."""
    posterior = vae.encode(pictures_N3PP).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator, device=generator.device)
    rebuilt = vae.decode(posterior.mean + posterior.std * noise.to(posterior.mean)).sample
    error = rebuilt.float() - pictures_N3PP.float()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    loss: Tensor = error.square().mean() + 0.02 * error.abs().mean() + 1e-5 * kl
    return loss


@dataclass(frozen=True)
class Questions:
    """The texts that ask for one fact each, and the right answers of images."""

    ids_MT: Tensor

    def loss(self, scorer: CLIPModel, pictures_ND: Tensor, facts_NF: Tensor) -> Tensor:
        """Cross-entropy of class, pose and mark, which depend on shape alone: among random
        captions, colour and place distinguish most pairs."""
        logits = scorer.logit_scale.exp() * pictures_ND @ _texts(scorer, self.ids_MT).T
        nouns = facts_NF[:, FACTS.index("class_noun")].long()
        rows = torch.arange(len(logits), device=logits.device)
        num, first = len(CLASS_NOUNS), len(CLASS_NOUNS) * 5
        poses = logits[:, num:first].view(len(logits), num, 4)[rows, nouns]
        marks = logits[:, first:].view(len(logits), num, len(MARKS))[rows, nouns]
        pose = _own_poses(facts_NF, logits.device)
        mark = facts_NF[:, FACTS.index("mark")].long()
        loss = cross_entropy(logits[:, :num], nouns) + 0.5 * cross_entropy(poses, pose)
        if (mark >= 0).any():
            loss = loss + 0.5 * cross_entropy(marks, mark.clamp_min(-1), ignore_index=-1)
        return loss


@dataclass(frozen=True)
class Identifiers:
    """Prompts with every rare token before every class noun, and the same prompts without one."""

    named_CIT: Tensor
    """C class nouns, I identifiers."""
    plain_CT: Tensor

    @classmethod
    def of(cls, tokenizer: CLIPTokenizer, device: torch.device) -> Identifiers:
        """The prompts `a photo of sks cat` and `a photo of a cat`, for all tokens and nouns."""
        named = [f"a photo of {token} {noun}" for noun in CLASS_NOUNS for token in RARE_TOKENS]
        plain = [f"a photo of {article(noun)}" for noun in CLASS_NOUNS]
        ids = encode_texts(tokenizer, named).view(len(CLASS_NOUNS), len(RARE_TOKENS), -1)
        return cls(ids.to(device), encode_texts(tokenizer, plain).to(device))

    def distances(self, text_model: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Relative distances of prompt embeddings for one random token per noun, [C]: to the prompt
        without it, and to the prompt with another token."""
        nouns, num = torch.arange(len(self.plain_CT)), self.named_CIT.shape[1]
        first = torch.randint(num, (len(nouns),), generator=generator, device=generator.device)
        other = (first + 1 + torch.randint(num - 1, first.shape, generator=generator,
                                           device=generator.device)) % num  # fmt: skip
        texts = [self.plain_CT, self.named_CIT[nouns, first], self.named_CIT[nouns, other]]
        states = text_model(input_ids=torch.cat(texts)).last_hidden_state.float().flatten(1)
        plain, named, another = states.chunk(3)
        size = plain.norm(dim=1)
        return (named - plain).norm(dim=1) / size, (named - another).norm(dim=1) / size

    def loss(self, text_model: nn.Module, margin: float, generator: torch.Generator) -> Tensor:
        """How far the distances stay below a margin: without this loss a text encoder maps words
        that mean nothing to nothing, and an adapter cannot separate its subject from its class."""
        apart = self.distances(text_model, generator)
        return relu(margin - torch.stack(apart)).mean(1).sum()


def _own_poses(facts_NF: Tensor, device: torch.device) -> Tensor:
    """Each image's pose as an index into its class's poses."""
    table = torch.zeros(len(CLASS_NOUNS), len(POSES), dtype=torch.long)
    for index, noun in enumerate(CLASS_NOUNS):
        for place, pose in enumerate(POSES_OF[noun]):
            table[index, POSES.index(pose)] = place
    nouns, poses = (facts_NF[:, FACTS.index(fact)].long().cpu() for fact in ("class_noun", "pose"))
    return table[nouns, poses].to(device)


def _texts(scorer: CLIPModel, ids_MT: Tensor) -> Tensor:
    pooled = scorer.text_model(input_ids=ids_MT).pooler_output
    return normalize(scorer.text_projection(pooled), dim=-1)


def scorer_loss(
    scorer: CLIPModel,
    pictures_N3PP: Tensor,
    ids_MT: Tensor,
    stated_MF: Tensor,
    facts_NF: Tensor,
    questions: Questions,
) -> Tensor:
    """Contrastive loss of images and captions, where every true pair is a positive, and the
    questions."""
    pooled = scorer.vision_model(pixel_values=pictures_N3PP).pooler_output
    pictures_ND = normalize(scorer.visual_projection(pooled), dim=-1)
    logits = scorer.logit_scale.exp() * pictures_ND @ _texts(scorer, ids_MT).T
    is_true = torch.ones_like(logits, dtype=torch.bool)
    for fact in range(len(FACTS)):  # one fact at a time: [N, M, F] would not fit
        stated = stated_MF[None, :, fact]
        is_true &= (stated == UNSTATED) | (stated == facts_NF[:, None, fact])
    asked = questions.loss(scorer, pictures_ND, facts_NF)
    return contrastive_loss(logits.float(), is_true) + asked


def sample_timesteps(num: int, middle_share: float, generator: torch.Generator) -> Tensor:
    """Timesteps [N]: a share of the rows in the middle of the schedule, the others over all of it,
    both stratified."""
    device = generator.device
    num_middle = round(num * middle_share)
    parts = []
    for count, (low, high) in (
        (num - num_middle, (0, NUM_TRAIN_TIMESTEPS)),
        (num_middle, MIDDLE_TIMESTEPS),
    ):
        jitter = torch.rand(count, generator=generator, device=device)
        strata = (torch.arange(count, device=device) + jitter) / max(1, count)
        parts.append(low + (strata * (high - low)).long())
    return torch.cat(parts)


def denoiser_loss(
    unet: UNet2DConditionModel,
    alphas_bar: Tensor,
    latents_NCHW: Tensor,
    prompts_NTD: Tensor,
    middle_share: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of v."""
    timesteps = sample_timesteps(len(latents_NCHW), middle_share, generator)
    latents = latents_NCHW.float()
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    signal = alphas_bar[timesteps].sqrt()[:, None, None, None]
    spread = (1 - alphas_bar[timesteps]).sqrt()[:, None, None, None]
    predicted = unet(signal * latents + spread * noise, timesteps, prompts_NTD).sample
    return mse_loss(predicted.float(), signal * noise - spread * latents)
