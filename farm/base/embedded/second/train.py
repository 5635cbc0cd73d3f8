"""Train an edition from scratch: one call, resumable, within a time budget.

    python -m farm.base.embedded.second OUT --device cuda --budget-s 360

Stages: tokenizer; autoencoder; scorer, whose text tower becomes the text encoder; denoiser. Scenes
are rendered on the CPU's cores throughout. `OUT/result` holds the two folders, `weights` and
`scorer`, and is rewritten every minute; `OUT/stages` the checkpoints; `OUT/plan.json` what the
budget decided; `OUT/progress.jsonl` the log.

Legend: N images, P pixels, K captions, T tokens, D width, C H W latent.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from farm.base.embedded.dataset import HELD_OUT_SEED
from farm.base.embedded.denoiser import build_schedule
from farm.base.embedded.folder import text_tower, write_base, write_scorer
from farm.base.embedded.progress import ProgressLog
from farm.base.embedded.scorer import encode_texts, measure_scorer
from farm.base.embedded.second.album import Album, edition_scene
from farm.base.embedded.second.edition import Edition
from farm.base.embedded.second.loop import BudgetPlan, BudgetSpent, Clock, Loop
from farm.base.embedded.second.losses import (
    QUESTIONS,
    Identifiers,
    Questions,
    denoiser_loss,
    scorer_loss,
    vae_loss,
)
from farm.base.embedded.second.models import build_scorer, build_unet, build_vae
from farm.base.embedded.tokenizer import build_tokenizer
from farm.base.embedded.vae import measure_psnr, one_cycle, standardize
from farm.base.embedded.world.render import render_scene

__all__ = ["train_edition"]

RESERVE = 0.06
"""Share of the budget for loading, writing and measuring."""
_MAX_LOGIT_SCALE = 4.6052


def train_edition(
    out: Path,
    edition: Edition,
    *,
    device: str = "cpu",
    budget_s: float | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    compiled: bool = False,
) -> Path:
    """Train in `out`, or resume there.

    Args:
        budget_s: seconds for this call; the steps of every stage are measured to fit. None trains
            the edition's own steps.
        num_workers: processes that render; None leaves one core to the training.
        compiled: whether to compile the UNet with `torch.compile`.

    Returns:
        `out/result`; its `weights` load in plain `StableDiffusionPipeline.from_pretrained`.
    """
    clock = Clock(time.monotonic(), budget_s)
    tokenizer = build_tokenizer(out / "tokenizer")
    album = Album(out / "cache", edition, seed)
    cores = num_workers or max(1, (os.cpu_count() or 2) - 1)
    workers = album.start(out / "tokenizer" / "vocab.json", cores)
    work = _Work(out, edition, seed, torch.device(device), clock, album, tokenizer, compiled)
    try:
        work.train()
    except BudgetSpent:
        work.progress.log("budget_spent", 0, left_s=clock.left_s())
    finally:
        for worker in workers:
            worker.terminate()
    return out / "result"


@dataclass
class _Work:
    out: Path
    edition: Edition
    seed: int
    device: torch.device
    clock: Clock
    album: Album
    tokenizer: CLIPTokenizer
    compiled: bool
    progress: ProgressLog = field(init=False)
    plan: BudgetPlan = field(init=False)

    def __post_init__(self) -> None:
        self.progress = ProgressLog(self.out / "progress.jsonl")
        self.plan = BudgetPlan(self.out / "plan.json")

    # -- stages -----------------------------------------------------------------------------------

    def train(self) -> None:
        """All stages, then the measurements that need no other base."""
        edition = self.edition
        later = RESERVE + edition.scorer.share + edition.denoiser.share
        vae = self.vae(self.clock.part_s(edition.vae.share, later))
        scorer = self.scorer(
            self.clock.part_s(edition.scorer.share, RESERVE + edition.denoiser.share)
        )
        self._write_scorer(scorer)
        self.denoiser(vae, text_tower(scorer), self.clock.part_s(1.0, RESERVE))
        self._measure(vae, scorer)

    def vae(self, seconds: float) -> AutoencoderKL:
        """Train the autoencoder and normalise its latents, or read it."""
        folder = self.out / "stages" / "vae"
        if (folder / "config.json").exists():
            read: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
            return read.eval()
        began = time.monotonic()
        pictures = self._pictures("vae", self.edition.vae.num_pictures, seconds)
        vae = self._built(build_vae(self.edition))

        def loss_of(step: int) -> Tensor:
            batch, generator = self._batch("vae", step, len(pictures), self.edition.vae.batch_size)
            unit = self._unit(pictures[batch], step)
            with self._precision():
                return vae_loss(vae, unit, generator)

        loop = self._loop("vae", vae, weight_decay=1e-4)
        loop.run(loss_of, seconds - (time.monotonic() - began))
        vae = vae.float().cpu().eval()
        standardize(vae, self.album.pictures[: min(512, len(pictures))])
        vae.save_pretrained(folder)
        return vae

    def scorer(self, seconds: float) -> CLIPModel:
        """Train the scorer, or read it."""
        folder = self.out / "stages" / "scorer"
        if (folder / "config.json").exists():
            read: CLIPModel = CLIPModel.from_pretrained(folder)
            return read.eval()
        began = time.monotonic()
        pictures = self._pictures("scorer", self.edition.scorer.num_pictures, seconds)
        ids, stated, facts = self._captions(len(pictures))
        scorer = self._built(build_scorer(self.edition, self.tokenizer))
        identifiers = Identifiers.of(self.tokenizer, self.device)
        questions = Questions(encode_texts(self.tokenizer, list(QUESTIONS)).to(self.device))

        def loss_of(step: int) -> Tensor:
            size = self.edition.scorer.batch_size
            batch, generator = self._batch("scorer", step, len(pictures), size)
            which = torch.randint(ids.shape[1], (2, size), generator=generator, device=self.device)
            rows = batch.repeat(2)
            unit = self._unit(pictures[batch], step)
            chosen = (ids[rows, which.flatten()].long(), stated[rows, which.flatten()])
            with self._precision():
                loss = scorer_loss(scorer, unit, *chosen, facts[batch], questions)
                margin = self.edition.identifier_margin
                return loss + identifiers.loss(scorer.text_model, margin, generator)

        loop = self._loop("scorer", scorer, betas=(0.9, 0.98), weight_decay=0.05)
        loop.after_step = lambda: _limit_scale(scorer)
        loop.run(loss_of, seconds - (time.monotonic() - began))
        scorer = scorer.float().cpu().eval()
        scorer.save_pretrained(folder)
        return scorer

    def denoiser(
        self, vae: AutoencoderKL, text_encoder: CLIPTextModel, seconds: float
    ) -> UNet2DConditionModel:
        """Train the denoiser, or resume; writes the base every minute."""
        began = time.monotonic()
        stage = self.edition.denoiser
        latents = self._latents(vae, stage.num_pictures, seconds)
        ids, _, _ = self._captions(len(latents))
        empty = encode_texts(self.tokenizer, [""]).to(self.device)
        text_encoder = text_encoder.to(self.device)
        unet = self._built(build_unet(self.edition)).to(memory_format=torch.channels_last)
        called = torch.compile(unet) if self.compiled else unet
        alphas_bar = build_schedule().alphas_cumprod.to(self.device)

        def loss_of(step: int) -> Tensor:
            batch, generator = self._batch("denoiser", step, len(latents), stage.batch_size)
            draws = torch.rand(2, len(batch), generator=generator, device=self.device)
            rows = ids[batch, (draws[0] * ids.shape[1]).long()].long()
            rows = torch.where((draws[1] < self.edition.empty_share)[:, None], empty, rows)
            with self._precision():
                with torch.no_grad():
                    prompts = text_encoder(rows)[0]
                return denoiser_loss(
                    called,
                    alphas_bar,
                    latents[batch],
                    prompts,
                    self.edition.middle_share,
                    generator,
                )

        def publish(step: int, average: dict[str, Tensor]) -> None:
            self._write_base(vae, text_encoder, average)

        loop = self._loop("denoiser", unet, average_decay=self.edition.average_decay)
        loop.rate_at, loop.on_checkpoint = self._denoiser_rate, publish
        averaged = loop.run(loss_of, seconds - (time.monotonic() - began))
        self._write_base(vae, text_encoder, averaged)
        unet.load_state_dict(averaged)
        return unet.float().cpu().eval()

    def _denoiser_rate(self, step: int, num_steps: int) -> float:
        """Warm-up, constant, and a linear fall to zero."""
        left = (num_steps - step) / max(1.0, num_steps * self.edition.decay_share)
        return min(1.0, (step + 1) / 150, max(0.0, left))

    # -- data -------------------------------------------------------------------------------------

    def _available(self, name: str, wanted: int, seconds: float) -> int:
        """How many images a stage uses: all it wants, or those ready when a quarter of its time
        has passed."""
        key = f"{name}_pictures"
        decided = self.plan.get(key)
        if decided is not None:
            return self.album.wait_for(decided)
        until_s = time.monotonic() + 0.25 * seconds
        return self.plan.put(key, self.album.wait_for(wanted, until_s=until_s))

    def _pictures(self, name: str, wanted: int, seconds: float) -> Tensor:
        """uint8 [N, P, P, 3] on the device."""
        num = self._available(name, wanted, seconds)
        return torch.from_numpy(self.album.pictures[:num]).to(self.device)

    def _captions(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids int16 [N, K, T], stated facts and facts of the first `num` images."""
        ids = torch.from_numpy(self.album.ids[:num].astype(np.int16))
        stated, facts = self.album.stated[:num], self.album.facts[:num]
        return (
            ids.to(self.device),
            torch.from_numpy(np.array(stated)).to(self.device),
            torch.from_numpy(np.array(facts)).to(self.device),
        )

    @torch.no_grad()
    def _latents(self, vae: AutoencoderKL, wanted: int, seconds: float) -> Tensor:
        """Latents [N, C, H, W] in half precision on the device, encoded in pieces as images become
        ready."""
        num = self._available("denoiser", wanted, seconds)
        twin = _copy(vae).to(self.device)
        parts = []
        for start in range(0, num, 256):
            part = torch.from_numpy(self.album.pictures[start : min(num, start + 256)])
            with self._precision():
                mean = twin.encode(self._unit(part.to(self.device), None)).latent_dist.mean
            parts.append(mean.half())
        return torch.cat(parts)

    def _batch(self, name: str, step: int, num: int, size: int) -> tuple[Tensor, torch.Generator]:
        """The image indices and the random stream of a step."""
        root = np.random.default_rng([self.seed, len(name), step])
        generator = torch.Generator(self.device).manual_seed(int(root.integers(2**62)))
        return torch.randint(num, (size,), generator=generator, device=self.device), generator

    @staticmethod
    def _unit(pictures_NPP3: Tensor, step: int | None) -> Tensor:
        """Images [N, 3, P, P] in [-1, 1]; mirrored in every other step."""
        unit = pictures_NPP3.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        if step is not None and step % 2:
            unit = unit.flip(3)
        return unit.contiguous(memory_format=torch.channels_last)

    # -- machinery --------------------------------------------------------------------------------

    def _built(self, module: Any) -> Any:
        """The module on the device, for training; initialised from the seed."""
        torch.manual_seed(self.seed)
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        return module.to(self.device).train()

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        """bfloat16 on a GPU; float32 on a CPU, where bfloat16 is slower."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            yield

    def _loop(self, name: str, module: Any, **options: Any) -> Loop:
        return Loop(
            name,
            module,
            getattr(self.edition, name),
            one_cycle,
            self.plan,
            self.clock,
            self.progress,
            self.out / "stages" / f"{name}.safetensors",
            **options,
        )

    # -- results ----------------------------------------------------------------------------------

    def _write_base(
        self, vae: AutoencoderKL, text_encoder: CLIPTextModel, weights: dict[str, Tensor]
    ) -> None:
        """Replace `result/weights` as a whole."""
        unet = build_unet(self.edition)
        unet.load_state_dict({name: tensor.float().cpu() for name, tensor in weights.items()})
        encoder = CLIPTextModel(text_encoder.config)
        encoder.load_state_dict(text_encoder.state_dict())
        aside = self.out / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        write_base(aside, self.tokenizer, encoder.cpu(), _copy(vae), unet.eval())
        self._replace(aside, "weights")

    def _write_scorer(self, scorer: CLIPModel) -> None:
        twin = CLIPModel(scorer.config)
        twin.load_state_dict(scorer.state_dict())
        aside = self.out / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        write_scorer(aside, twin.eval(), self.tokenizer)
        self._replace(aside, "scorer")

    def _replace(self, aside: Path, name: str) -> None:
        target = self.out / "result" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)

    def _measure(self, vae: AutoencoderKL, scorer: CLIPModel) -> None:
        """The autoencoder's PSNR and the scorer's accuracies on held-out images, in a file."""
        num = min(400, self.edition.num_pictures)
        scenes = [edition_scene(self.edition, HELD_OUT_SEED, index) for index in range(num)]
        side = self.edition.picture_px
        held = np.stack([np.asarray(render_scene(scene, size_px=side)) for scene in scenes])
        steps = self.plan.get("denoiser_steps") or 0
        summary = {
            "edition": self.edition.name,
            "seed": self.seed,
            "plan": json.loads(self.plan.path.read_text()),
            "denoiser_rows": steps * self.edition.denoiser.batch_size,
            "num_held_out": num,
            "vae_psnr_db": round(measure_psnr(vae, held), 3),
            "scorer": measure_scorer(scorer, self.tokenizer, held, scenes),
            "identifier_distance": round(self._identifier_distance(scorer), 3),
        }
        (self.out / "result" / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")

    @torch.no_grad()
    def _identifier_distance(self, scorer: CLIPModel) -> float:
        """How far rare tokens move a prompt's embedding, on average."""
        identifiers = Identifiers.of(self.tokenizer, torch.device("cpu"))
        apart = identifiers.distances(scorer.text_model, torch.Generator().manual_seed(0))
        return float(torch.stack(apart).mean())


def _limit_scale(scorer: CLIPModel) -> None:
    with torch.no_grad():
        scorer.logit_scale.clamp_(max=_MAX_LOGIT_SCALE)


def _copy(vae: AutoencoderKL) -> AutoencoderKL:
    twin: AutoencoderKL = AutoencoderKL.from_config(vae.config)
    twin.load_state_dict(vae.state_dict())
    return twin.eval()
