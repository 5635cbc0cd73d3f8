"""A newcomer's whole way with the defaults alone: train, serve, ask, and compare.

Each adapter of each store is asked for through the `openai` client at an endpoint that `farm serve`
started without a setting. Its picture is not the bare base's of the same seed, and it is the one
that plain diffusers generates with the exported file.
"""

from __future__ import annotations

import base64
import io
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from support.docs.workplace import PageRun

if TYPE_CHECKING:
    from conftest import Documentation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEED, STEPS, GUIDANCE = 11, 12, 4.0
ASK = {
    "extra_body": {"seed": SEED, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE},
}
MIXED = """
version: 1
defaults:
  class_noun: cat
  recipe: {steps: 20, prior_rows: 0, num_prior_images: 0, crops_per_photo: 1, learning_rate: 5e-3}
subjects:
  - id: attention
    photos: photos/tom
    recipe: {rank: 4, target_modules: [to_q, to_k, to_v, to_out.0]}
  - id: convolutions
    photos: photos/tom
    recipe: {rank: 12, alpha: 6, target_modules: [conv1, conv2, conv_in]}
  - id: large
    photos: photos/tom
    recipe: {rank: 40, target_modules: [to_v, ff.net.0.proj, ff.net.2, conv_shortcut]}
  - id: words
    photos: photos/tom
    recipe: {rank: 2, target_modules: [to_k], text_encoder_modules: [q_proj, fc1]}
"""
"""Linear layers, convolutions of one and of three pixels, the text encoder, ranks from 2 to 40."""


@pytest.fixture(scope="module")
def shell(documentation: Documentation) -> Iterator[PageRun]:
    """A shell in the clone, after all that README says."""
    documentation.read_readme()
    page = PageRun(documentation.clone, prelude=(". .venv/bin/activate",), warm=True)
    yield page
    page.close()


@pytest.fixture(scope="module")
def demo_endpoint(documentation: Documentation) -> Iterator[PageRun]:
    """A shell that has activated nothing, as after `make demo`, with the line that it printed."""
    readme = documentation.read_readme()
    (line,) = [
        line
        for line in readme.output.splitlines()
        if line.endswith("farm serve --store demo/store")
    ]
    page = PageRun(documentation.clone, warm=True)
    try:
        page.run_line(line)
        yield page
    finally:
        page.close()


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """Plain diffusers on the embedded base's folder; nothing of the farm's own."""
    from diffusers import StableDiffusionPipeline

    from farm.base.loading import resolve_folder

    plain = StableDiffusionPipeline.from_pretrained(
        resolve_folder("embedded"), torch_dtype=torch.float32
    )
    plain.set_progress_bar_config(disable=True)
    return plain


def pixels(data: bytes | Image.Image) -> np.ndarray:
    """A picture as numbers that can be subtracted."""
    image = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
    return np.asarray(image.convert("RGB")).astype(np.int16)


def served(client: openai.OpenAI, model: str, prompt: str) -> np.ndarray:
    (item,) = client.images.generate(model=model, prompt=prompt, **ASK).data or ()
    return pixels(base64.b64decode(item.b64_json or ""))


def plain_picture(pipeline: Any, prompt: str, weights: Path) -> np.ndarray:
    pipeline.load_lora_weights(weights.parent, weight_name=weights.name)
    try:
        return pixels(
            pipeline(
                prompt,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=torch.Generator("cpu").manual_seed(SEED),
            ).images[0]
        )
    finally:
        pipeline.unload_lora_weights()


def serve(shell: PageRun, store: str) -> None:
    """Serve a store with the defaults, and nothing else."""
    shell.close()
    shell.run_line(f"farm serve --store {store}")


def check_every_adapter(
    shell: PageRun, pipeline: Any, store: str, names: set[str], *, farm: str = "farm"
) -> None:
    """Compare the pictures of all adapters of a store that the shell is serving."""
    shell.run_line(f"{farm} export exported/{store} --store {store} --form diffusers")
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{shell.port}/v1", api_key="none", max_retries=0
    )
    found = {model.id for model in client.models.list()} - {"embedded"}
    assert found == names
    for name in sorted(names):
        prompt = "a photo of sks cat in space"
        own = served(client, name, prompt.replace("sks", "[V]"))
        bare = served(client, "embedded", prompt)
        exported = shell.clone.folder / "exported" / store / "default" / f"{name}.safetensors"
        plain = plain_picture(pipeline, prompt, exported)
        assert np.abs(own - bare).mean() > 3, f"{name}: the bare base's picture"
        assert np.abs(own - plain).mean() < 0.5, f"{name}: not what plain diffusers generates"
        assert np.abs(own - plain).max() <= 16, f"{name}: not what plain diffusers generates"


@pytest.mark.proves("Stable Diffusion 1.x and 2.x", "run to request")
def test_the_demos_adapters_are_served(demo_endpoint: PageRun, pipeline: Any) -> None:
    names = {"cat-01", "mushroom-02"}
    check_every_adapter(demo_endpoint, pipeline, "demo/store", names, farm=".venv/bin/farm")


def test_the_line_that_the_demo_prints_opens_its_page(demo_endpoint: PageRun) -> None:
    address = f"http://127.0.0.1:{demo_endpoint.port}/"
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/html")
        assert b"</html>" in answer.read()


def test_adapters_of_a_folder_of_photos_are_served(shell: PageRun, pipeline: Any) -> None:
    # a later page makes keys in this store, and asks for them from then on
    folder = shell.clone.folder
    shutil.copytree(folder / "work", folder / "photos-store", ignore=lambda *_: {"keys"})
    serve(shell, "photos-store")
    check_every_adapter(shell, pipeline, "photos-store", {"my_cat", "rex"})


def test_mixed_layers_and_ranks_are_served(shell: PageRun, pipeline: Any) -> None:
    (shell.clone.folder / "mixed.yaml").write_text(MIXED)
    shell.run_line("farm run mixed.yaml --store mixed --in-process --plain")
    serve(shell, "mixed")
    names = {"attention", "convolutions", "large", "words"}
    check_every_adapter(shell, pipeline, "mixed", names)


def test_the_demos_report_shows_what_its_endpoint_generated(documentation: Documentation) -> None:
    documentation.read_readme()
    (page,) = (documentation.clone.folder / "demo/store/runs").glob("*/report.html")
    text = page.read_text(encoding="utf-8")
    section = text.partition('id="served-title"')[2].partition("</section>")[0]
    assert section.count('src="data:image/webp;base64,') == 2
    for caption in ("cat-01: a photo of sks cat in space", "mushroom-02: a photo of sks mushroom"):
        assert caption in section
