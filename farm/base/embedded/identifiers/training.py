"""Teaches the embedded base's text encoder to keep identifiers: minutes on one core.

    python -m farm.base.embedded.identifiers.training OUT

The new text encoder reproduces the old one's embeddings and adds each identifier's code in the
unused directions; the UNet is made blind to them. No image is needed. Resumes and is deterministic
in its seed.

Legend: N texts, T tokens, D text width, Q directions.
"""

from __future__ import annotations

import argparse
import random
import re
import string
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from farm.base.embedded.checkpoint import load_checkpoint, save_checkpoint
from farm.base.embedded.folder import load_pipeline, write_base
from farm.base.embedded.identifiers.space import IdentifierCodes, blind, unused_directions
from farm.base.embedded.progress import ProgressLog
from farm.base.embedded.scorer import encode_texts
from farm.base.embedded.tokenizer import known_words
from farm.base.embedded.vae import one_cycle
from farm.base.embedded.world.captions import write_caption, write_short_caption
from farm.base.embedded.world.scene import Scene, sample_scene
from farm.base.embedded.world.words import RARE_TOKENS

__all__ = ["LegibilityPlan", "make_legible", "write_prompt"]


@dataclass(frozen=True)
class LegibilityPlan:
    """Training hyperparameters of the text encoder."""

    num_steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 1e-3
    code_norm: float = 8.0
    """Norm of the identifier's part of an embedding; the rest has a norm of 10.6."""
    seed: int = 0


def write_prompt(scene: Scene, rng: random.Random) -> str:
    """A caption of the world, in most cases with an identifier before its class noun, in some with
    further words that mean nothing here, and rarely with a second identifier."""
    text = (write_caption if rng.random() < 0.6 else write_short_caption)(scene, rng).text
    if rng.random() < 0.6:
        text = _named(text, scene, _identifier(rng), keeps_article=rng.random() < 0.5)
    if rng.random() < 0.15:
        words = text.split()
        for _ in range(rng.randint(1, 3)):
            word = rng.choice(known_words()) if rng.random() < 0.7 else _letters(rng)
            words.insert(rng.randint(len(words) // 2, len(words)), word)
        text = " ".join(words)
    if rng.random() < 0.1:
        text += f" and {_identifier(rng)} {scene.class_noun}"
    return "" if rng.random() < 0.03 else text


def _named(text: str, scene: Scene, identifier: str, *, keeps_article: bool) -> str:
    phrase = rf"\b(a|an|the) (?=(?:{scene.colour} )?{scene.class_noun}\b)"
    replacement = f"a {identifier} " if keeps_article else f"{identifier} "
    return re.sub(phrase, replacement, text, count=1)


def _identifier(rng: random.Random) -> str:
    return rng.choice(RARE_TOKENS) if rng.random() < 0.75 else _letters(rng)


def _letters(rng: random.Random) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 6)))


def make_legible(
    source: Path, work: Path, weights: Path, plan: LegibilityPlan | None = None
) -> None:
    """Train in `work`, or resume there, and write the base's folder to `weights`.

    Args:
        source: the folder of a base whose text encoder drops identifiers.
    """
    plan = plan or LegibilityPlan()
    pipeline = load_pipeline(source)
    old = load_pipeline(source).text_encoder.requires_grad_(False)
    texts = _prompts(plan, -1, 600, plain=True)
    with torch.no_grad():
        directions_DQ = unused_directions(old(encode_texts(pipeline.tokenizer, texts))[0])
    lesson = _Lesson(pipeline, old, directions_DQ, plan)
    _train(lesson, plan, work)
    pipeline.text_encoder.eval()
    blind(pipeline.unet, directions_DQ)
    tokenizer = CLIPTokenizer.from_pretrained(source / "tokenizer")  # as saved: without padding
    write_base(weights, tokenizer, pipeline.text_encoder, pipeline.vae, pipeline.unet)


def _prompts(plan: LegibilityPlan, step: int, num: int, *, plain: bool = False) -> list[str]:
    rng = random.Random(f"identifiers/{plan.seed}/{step}")
    scenes = [sample_scene(plan.seed, rng.randrange(1 << 30)) for _ in range(num)]
    return [(write_caption(s, rng).text if plain else write_prompt(s, rng)) for s in scenes]


class _Lesson:
    """The embeddings that the text encoder is to produce, and its error."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        old: CLIPTextModel,
        directions_DQ: Tensor,
        plan: LegibilityPlan,
    ) -> None:
        self._tokenizer, self.encoder = pipeline.tokenizer, pipeline.text_encoder
        self._old, self._plan = old, plan
        self._directions_DQ = directions_DQ
        self._codes = IdentifierCodes.of(pipeline.tokenizer)

    def errors(self, step: int) -> tuple[Tensor, Tensor]:
        """Mean squared norms of the error: of the old part and of the identifier's."""
        ids = encode_texts(self._tokenizer, _prompts(self._plan, step, self._plan.batch_size))
        basis = self._directions_DQ
        with torch.no_grad():
            kept = self._old(ids)[0]
            kept = kept - (kept @ basis) @ basis.T
            codes = self._plan.code_norm * self._codes(ids)
        error = self.encoder(ids)[0] - kept
        coded = error @ basis
        rest = error - coded @ basis.T
        return rest.square().sum(2).mean(), (coded - codes).square().sum(2).mean()


def _train(lesson: _Lesson, plan: LegibilityPlan, work: Path) -> None:
    torch.manual_seed(plan.seed)
    encoder = lesson.encoder.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=plan.learning_rate, weight_decay=0.0)
    progress, checkpoint = ProgressLog(work / "progress.jsonl"), work / "state.safetensors"
    for step in range(load_checkpoint(checkpoint, encoder, optimizer), plan.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * one_cycle(step, plan.num_steps)
        kept, coded = lesson.errors(step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(kept + 0.3 * coded)
        nn.utils.clip_grad_norm_(encoder.parameters(), 10.0)
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == plan.num_steps:
            progress.log("identifiers", step + 1, kept=kept.item(), coded=coded.item())
        if (step + 1) % 50 == 0 or step + 1 == plan.num_steps:
            save_checkpoint(checkpoint, step + 1, encoder, optimizer)


def main() -> None:
    """Train from the shipped first edition."""
    from farm.base.loading import resolve_folder

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="working folder; run again to resume there")
    parser.add_argument("--steps", type=int, default=LegibilityPlan.num_steps)
    options = parser.parse_args()
    plan = LegibilityPlan(num_steps=options.steps)
    out: Path = options.out
    make_legible(resolve_folder("embedded-64"), out, out / "weights", plan)


if __name__ == "__main__":
    main()
