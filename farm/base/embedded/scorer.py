"""The scorer of the synthetic world: a tiny CLIP whose text tower becomes the embedded base's text
encoder.

Owns its architecture, contrastive training and held-out accuracy. Because the facts stated by each
caption are known, every true pair of a batch counts as a positive and is never pushed apart.
Legend: N images, M captions, T tokens, D width.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from farm.base.embedded.checkpoint import load_checkpoint, save_checkpoint
from farm.base.embedded.dataset import scenes_of
from farm.base.embedded.progress import StageRun
from farm.base.embedded.tokenizer import MAX_TOKENS
from farm.base.embedded.vae import one_cycle, to_unit
from farm.base.embedded.world.captions import (
    UNSTATED,
    fact_vector,
    stated_vector,
    write_caption,
    write_short_caption,
)
from farm.base.embedded.world.scene import Scene
from farm.base.embedded.world.words import CLASS_NOUNS, COLOURS, PLACES, POSES, POSES_OF

WIDTH = 128
_MAX_LOGIT_SCALE = 4.6052
"""CLIP's limit: logits are scaled by at most 100."""


def build_scorer(
    tokenizer: CLIPTokenizer,
    *,
    width: int = WIDTH,
    side_px: int = 64,
    patch_px: int = 8,
    vision_layers: int = 3,
) -> CLIPModel:
    """Build a scorer with new weights from torch's global generator."""
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        num_hidden_layers=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=width,
        **shape,
    )
    vision = CLIPVisionConfig(
        image_size=side_px,
        patch_size=patch_px,
        num_hidden_layers=vision_layers,
        projection_dim=width,
        **shape,
    )
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width
    )
    return CLIPModel(config)


def article(word: str) -> str:
    """`a` or `an`."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def scorer_folder() -> Path:
    """The folder of the shipped scorer inside the package."""
    return Path(__file__).parent / "scorer"


def load_scorer(folder: Path | None = None) -> tuple[CLIPModel, CLIPTokenizer]:
    """Load the shipped scorer, or another, in float32, like any CLIP."""
    where = folder or scorer_folder()
    scorer: CLIPModel = CLIPModel.from_pretrained(where, dtype=torch.float32)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(where)
    return scorer.eval(), tokenizer


def build_image_processor(side_px: int = 64) -> CLIPImageProcessor:
    """The scorer's image preprocessing: its size, scaled to [-1, 1] as for the VAE."""
    return CLIPImageProcessor(
        size={"shortest_edge": side_px},
        crop_size={"height": side_px, "width": side_px},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def encode_texts(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (M, T), padded to the full length as in Stable Diffusion's pipeline."""
    encoded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


@dataclass(frozen=True)
class CaptionedBatch:
    """Images, two captions of each, and which pairs are true."""

    pictures_NCHW: Tensor
    ids_MT: tuple[Tensor, Tensor]
    """The long captions and the short ones, each trimmed to its longest: tokens after the end token
    have no effect.
    """
    is_true_NM: Tensor
    indices: list[int]
    """Indices of the images in the album."""

    def to(self, device: torch.device) -> CaptionedBatch:
        """The batch on a device."""
        long_ids, short_ids = self.ids_MT
        return CaptionedBatch(
            self.pictures_NCHW.to(device),
            (long_ids.to(device), short_ids.to(device)),
            self.is_true_NM.to(device),
            self.indices,
        )


def sample_captioned(
    album: NDArray[np.uint8],
    facts: NDArray[np.int16],
    scenes: list[Scene],
    tokenizer: CLIPTokenizer,
    *,
    seed: int,
    step: int,
    batch_size: int,
) -> CaptionedBatch:
    """Sample the batch of one step: each image has one long and one short caption."""
    rng = random.Random(f"scorer/{seed}/{step}")
    chosen = [rng.randrange(len(album)) for _ in range(batch_size)]
    texts, vectors = [], []
    for write in (write_caption, write_short_caption):
        for index in chosen:
            caption = write(scenes[index], rng)
            texts.append(caption.text)
            vectors.append(stated_vector(scenes[index], caption))
    pictures = album[chosen]
    if rng.random() < 0.5:
        pictures = np.ascontiguousarray(pictures[:, :, ::-1])
    pictures = _shift(pictures, rng.randint(-3, 3), rng.randint(-3, 3))
    stated = np.stack(vectors)[None]
    held = facts[chosen][:, None]
    is_true = ((stated == UNSTATED) | (stated == held)).all(-1)
    long_ids, short_ids = (_cut(ids) for ids in encode_texts(tokenizer, texts).chunk(2))
    return CaptionedBatch(
        to_unit(pictures), (long_ids, short_ids), torch.from_numpy(is_true), chosen
    )


def _shift(pictures_NHWC: NDArray[np.uint8], x: int, y: int) -> NDArray[np.uint8]:
    """Shift images by whole pixels, at most 3; edge pixels are repeated."""
    wide = np.pad(pictures_NHWC, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    return wide[:, 3 + y : 67 + y, 3 + x : 67 + x]


def _cut(ids_MT: Tensor) -> Tensor:
    """Drop the padding that all rows share: the pad token is the end token, the highest id."""
    num_tokens = int(ids_MT.argmax(1).max()) + 1
    return ids_MT[:, :num_tokens]


def _logits(scorer: CLIPModel, batch: CaptionedBatch) -> tuple[Tensor, Tensor]:
    """Scaled cosines (N, M) of a batch, and its unit image embeddings (N, D)."""
    normalize = torch.nn.functional.normalize
    pooled = scorer.vision_model(pixel_values=batch.pictures_NCHW).pooler_output
    pictures = scorer.visual_projection(pooled)
    texts = torch.cat([scorer.text_model(input_ids=ids).pooler_output for ids in batch.ids_MT])
    texts = scorer.text_projection(texts)
    scale = scorer.logit_scale.exp()
    pictures = normalize(pictures, dim=-1)
    return scale * pictures @ normalize(texts, dim=-1).T, pictures


_QUESTIONS = [article(noun) for noun in CLASS_NOUNS] + [
    f"{article(noun)} {pose}" for noun in CLASS_NOUNS for pose in POSES_OF[noun]
]
"""`a cat` for each class noun, then `a cat sitting` for each of its poses."""


def question_loss(
    scorer: CLIPModel, questions_MT: Tensor, pictures_ND: Tensor, facts: NDArray[np.int16]
) -> Tensor:
    """Cross-entropy of classifying the class and the pose, which depend on shape alone.

    Colour and place distinguish most pairs of a batch, so without this loss shape is learned late.
    """
    pooled = scorer.text_model(input_ids=_cut(questions_MT)).pooler_output
    texts = torch.nn.functional.normalize(scorer.text_projection(pooled), dim=-1)
    logits = scorer.logit_scale.exp() * pictures_ND @ texts.T
    num_classes = len(CLASS_NOUNS)
    nouns = torch.from_numpy(facts[:, 0].astype(np.int64)).to(logits.device)
    own_poses = [
        POSES_OF[CLASS_NOUNS[noun]].index(POSES[pose])
        for noun, pose in zip(facts[:, 0], facts[:, 2], strict=True)
    ]
    poses = torch.tensor(own_poses, device=logits.device)
    by_class = logits[:, num_classes:].view(len(logits), num_classes, -1)
    of_own = by_class[torch.arange(len(logits)), nouns]
    entropy = torch.nn.functional.cross_entropy
    return entropy(logits[:, :num_classes], nouns) + 0.5 * entropy(of_own, poses)


def contrastive_loss(logits_NM: Tensor, is_true_NM: Tensor) -> Tensor:
    """InfoNCE of each true pair against the false pairs of its row and of its column."""
    return (_one_way(logits_NM, is_true_NM) + _one_way(logits_NM.T, is_true_NM.T)) / 2


def _one_way(logits: Tensor, is_true: Tensor) -> Tensor:
    against = logits.masked_fill(is_true, -1e4).logsumexp(1, keepdim=True)
    loss = torch.nn.functional.softplus(against - logits) * is_true
    return (loss.sum(1) / is_true.sum(1).clamp_min(1)).mean()


def train_scorer(
    album: NDArray[np.uint8],
    tokenizer: CLIPTokenizer,
    stage: StageRun,
    *,
    batch_size: int = 80,
    learning_rate: float = 1.5e-3,
    start: CLIPModel | None = None,
) -> CLIPModel:
    """Train the scorer on an album of the stage's seed. Resumes from the stage's checkpoint;
    continues from the weights of `start` if it is given.
    """
    scenes = scenes_of(stage.seed, len(album))
    facts = np.stack([fact_vector(scene) for scene in scenes])
    questions = encode_texts(tokenizer, _QUESTIONS)
    torch.manual_seed(stage.seed)
    scorer = (build_scorer(tokenizer) if start is None else start).to(stage.device).train()
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    for step in range(load_checkpoint(stage.checkpoint, scorer, optimizer), stage.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * one_cycle(step, stage.num_steps, warm_share=0.1)
        batch = sample_captioned(
            album, facts, scenes, tokenizer, seed=stage.seed, step=step, batch_size=batch_size
        ).to(stage.device)
        logits, pictures = _logits(scorer, batch)
        asked = question_loss(scorer, questions.to(stage.device), pictures, facts[batch.indices])
        loss = contrastive_loss(logits, batch.is_true_NM) + asked
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            scorer.logit_scale.clamp_(max=_MAX_LOGIT_SCALE)
        if step % 25 == 0 or step == stage.num_steps - 1:
            stage.progress.log("scorer", step, loss=loss.item())
        if (step + 1) % 250 == 0:
            save_checkpoint(stage.checkpoint, step + 1, scorer, optimizer)
    return scorer.cpu().eval()


@torch.no_grad()
def embed_texts(scorer: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Unit text embeddings (M, D), computed as for any CLIP."""
    output = scorer.text_model(input_ids=encode_texts(tokenizer, texts))
    return torch.nn.functional.normalize(
        scorer.text_projection(output.pooler_output).float(), dim=-1
    )


@torch.no_grad()
def embed_pictures(scorer: CLIPModel, pictures_NHWC: NDArray[np.uint8]) -> Tensor:
    """Unit image embeddings (N, D) of uint8 images."""
    parts = []
    for start in range(0, len(pictures_NHWC), 128):
        pixels = to_unit(pictures_NHWC[start : start + 128]).to(scorer.dtype)
        pooled = scorer.vision_model(pixel_values=pixels).pooler_output
        parts.append(scorer.visual_projection(pooled).float())
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def options_for(fact: str, class_noun: str) -> tuple[tuple[str, ...], list[str]]:
    """The possible values of one fact about an image of a class, and the prompt for each."""
    if fact == "class_noun":
        return CLASS_NOUNS, [article(noun) for noun in CLASS_NOUNS]
    if fact == "colour":
        colours = tuple(COLOURS)
        return colours, [f"{article(colour)} {class_noun}" for colour in colours]
    if fact == "place":
        return PLACES, [f"{article(class_noun)} {place}" for place in PLACES]
    poses = POSES_OF[class_noun]
    return poses, [f"{article(class_noun)} {pose}" for pose in poses]


def answer(
    scorer: CLIPModel, tokenizer: CLIPTokenizer, pictures_ND: Tensor, nouns: list[str], fact: str
) -> list[str]:
    """For each image embedding of a class noun, the option whose prompt scores highest."""
    answers = []
    cache: dict[str, tuple[tuple[str, ...], Tensor]] = {}
    for embedding, noun in zip(pictures_ND, nouns, strict=True):
        if noun not in cache:
            options, prompts = options_for(fact, noun)
            cache[noun] = (options, embed_texts(scorer, tokenizer, prompts))
        options, texts = cache[noun]
        answers.append(options[int((texts @ embedding).argmax())])
    return answers


def measure_scorer(
    scorer: CLIPModel, tokenizer: CLIPTokenizer, album: NDArray[np.uint8], scenes: list[Scene]
) -> dict[str, float]:
    """Share of correct answers on an album, by fact."""
    embeddings = embed_pictures(scorer, album)
    nouns = [scene.class_noun for scene in scenes]
    accuracies = {}
    for fact in ("class_noun", "colour", "place", "pose"):
        answers = answer(scorer, tokenizer, embeddings, nouns, fact)
        right = [
            getattr(scene, fact) == given for scene, given in zip(scenes, answers, strict=True)
        ]
        accuracies[fact] = sum(right) / len(right)
    return accuracies
