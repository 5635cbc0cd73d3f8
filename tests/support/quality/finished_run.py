"""Runs made for the tests of the report: rendered images, scores from real formulas."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from PIL import Image, ImageEnhance, ImageFilter

from farm.base.embedded.world.render import render_scene
from farm.base.embedded.world.scene import Scene, sample_scene
from farm.base.embedded.world.words import POSES_OF, SCENERY
from farm.quality.report.thumbs import ThumbBudget, data_uri
from farm.quality.report.view import LaneSpan, ReportImage, RunView, SubjectView
from farm.quality.verdict import Evidence, judge

EVIDENCE = {
    "learned well": Evidence(0.86, 0.12, 0.94, 0.1, 0.97),
    "partly learned": Evidence(0.36, 0.1, 0.97, -0.2, 1.01),
    "class forgotten": Evidence(0.92, 0.81, 0.41, 0.22, 0.93),
    "copies its photos": Evidence(1.04, 0.4, 0.8, 0.71, 0.58),
    "never learned": Evidence(0.04, 0.02, 1.0, -0.8, 1.0),
    "diverged": Evidence(0.1, 0.1, 0.5, 0, 0.3, loss_ratio=3.1),
}
LABELS = (*["learned well"] * 9, *list(EVIDENCE)[1:])


def make_card(label: str, rng: random.Random) -> dict[str, Any]:
    evidence = EVIDENCE[label]
    assert evidence.gain is not None
    gain = evidence.gain + rng.uniform(-0.03, 0.03)
    base, top = 0.52, 0.86

    def around(mean: float, spread: float = 0.03) -> dict[str, Any]:
        return {
            "mean": mean, "low": mean - spread, "high": mean + spread, "num": 8, "unit": "images",
        }  # fmt: skip

    fidelity = base + gain * (top - base)
    found = replace(evidence, gain=gain)
    return {
        "version": 1,
        "scorers": {"clip": "embedded"},
        "protocol": "synthetic world",
        "scores": {
            "clip_i": around(fidelity), "pres": around(0.56), "div": around(0.31),
            "copying": around(0.8), "drift": around(0.06), "clip_t": around(0.3, 0.01),
        },
        "base_scores": {
            "clip_i": around(base), "pres": around(0.53), "div": around(0.33),
            "copying": around(0.61), "clip_t": around(0.31, 0.01),
        },
        "evidence": {"gain": gain, "capture": found.capture, "diversity_ratio":
            found.diversity_ratio, "copy_excess": found.copy_excess, "prompt_ratio":
            found.prompt_ratio},
        "poses": {
            "adapter": {"counts": {"sitting": 3, "standing": 2, "jumping": 1, "sleeping": 0}},
            "base": {"counts": {"sitting": 2, "standing": 2, "jumping": 1, "sleeping": 1}},
        },
        "verdict": judge(found).to_json(),
    }  # fmt: skip


def stages(scene: Scene, num: int) -> list[Image.Image]:
    """An image that becomes clearer step by step."""
    clear = render_scene(scene, size_px=64)
    result = []
    for index in range(num):
        share = index / (num - 1)
        blurred = clear.filter(ImageFilter.GaussianBlur(9 * (1 - share)))
        result.append(ImageEnhance.Color(blurred).enhance(0.25 + 0.75 * share))
    return result


def make_subject(index: int, budget: ThumbBudget, label: str) -> SubjectView:
    rng = random.Random(index)
    scene = sample_scene(11, index)

    def thumb(picture: Image.Image) -> str:
        return data_uri(picture, budget.side_px, budget.quality)

    photos = [
        replace(sample_scene(12, 7 * index + n), class_noun=scene.class_noun, look=scene.look,
                colour=scene.colour, pose=scene.pose)
        for n in range(min(4, budget.num_photos))
    ]  # fmt: skip
    scenes = [replace(scene, place=place) for place in SCENERY[: budget.num_gallery]]
    pictures = [render_scene(one, size_px=64) for one in scenes]
    shots = [render_scene(one, size_px=64) for one in photos]
    losses = [0.45 * math.exp(-step / 120) + 0.2 + rng.gauss(0, 0.09) for step in range(400)]
    return SubjectView(
        id=f"{scene.class_noun}-{index:04d}",
        name=f"{scene.colour}-{scene.class_noun}-{index:03d}",
        namespace="default" if index % 7 else "studio-north",
        class_noun=scene.class_noun,
        status="committed",
        job_key=f"{rng.getrandbits(128):032x}",
        photos=[ReportImage(thumb(shot), f"photo {n + 1}") for n, shot in enumerate(shots)],
        progress=[
            ReportImage(thumb(stage), f"a sks {scene.class_noun} in space", step=50 * n)
            for n, stage in enumerate(stages(scenes[2], min(9, budget.num_progress)))
        ],
        gallery=[
            ReportImage(thumb(picture), f"a sks {one.class_noun} {one.place}")
            for picture, one in zip(pictures, scenes, strict=True)
        ],
        class_pictures=[
            ReportImage(thumb(render_scene(replace(sample_scene(5, n), class_noun=scene.class_noun,
            pose=POSES_OF[scene.class_noun][0]), size_px=64)), f"a {scene.class_noun}")
            for n in range(budget.num_class)
        ],
        row_photo=data_uri(shots[0], budget.row_px),
        row_picture=data_uri(pictures[0], budget.row_px),
        card=make_card(label, rng),
        loss_curve=losses,
        evaluation_curve=[(step, 0.3 * math.exp(-step / 90) + 0.22) for step in range(0, 401, 25)],
        steps_trained=300,
        steps_planned=400,
        stopped_because="keep_best",
        seconds=rng.uniform(8, 30),
        was_reused=index % 13 == 5,
        recipe={"rank": 8, "learning_rate": 0.0005, "prior_weight": 1.0},
        prompt=f"a photo of sks {scene.class_noun}",
    )  # fmt: skip


SPARE = ThumbBudget(64, 48, 60, 2, 3, 3, 2)
"""Enough for tests, because rendering takes most of the time."""


def make_run(num: int, *, num_failed: int = 2, budget: ThumbBudget = SPARE) -> RunView:
    rng = random.Random(3)
    subjects = [make_subject(n, budget, LABELS[n % len(LABELS)]) for n in range(num - num_failed)]
    for n in range(num_failed):
        subjects.append(
            SubjectView(
                id=f"broken-{n}", name=f"broken-{n}", namespace="default", class_noun="cat",
                status="rejected", reason="photos/3.jpg is truncated: 2,048 of 80,114 bytes",
                remedy="copy the photo again from the camera",
            )
        )  # fmt: skip
    spans, clock = [], {"lane-0": 2.0, "lane-1": 2.4}
    for subject in subjects[:60]:
        lane = min(clock, key=clock.__getitem__)
        length = rng.uniform(4, 11)
        spans.append(
            LaneSpan(
                lane,
                clock[lane],
                clock[lane] + length,
                subject.job_key,
                subject.id,
                "ok" if subject.status == "committed" else "bad",
            )
        )
        clock[lane] += length + rng.uniform(0, 1)
    return RunView(
        run_id="2026-11-22-studio-autumn",
        base="embedded",
        created="2026-11-22 17:40 UTC",
        seconds=max(clock.values()) + 3,
        subjects=subjects,
        spans=spans,
        dollars=0.0413,
        dollars_per_hour=2.5,
        rows_per_s=214.0,
        farm_version="0.1.0",
    )  # fmt: skip
