"""Text encoders whose weights stay in host memory encode as if they were on the device."""

from __future__ import annotations

import pytest
import torch

from farm.base.device.streaming import stream_weights
from farm.base.loading import load_base

PROMPTS = ["a photo of sks cat", "a small mushroom in the rain"]


@pytest.mark.parametrize(
    ("name", "part"), [("tiny-flux", "text_encoder_2"), ("tiny-klein", "text_encoder")]
)
def test_a_streamed_encoder_gives_the_same_states(name: str, part: str) -> None:
    base = load_base(name)
    wanted = base.encode_prompts(PROMPTS)
    stream_weights(getattr(base.pipeline(), part), base.device)
    for _ in range(2):  # the second time, every layer has been there and back
        assert torch.equal(base.encode_prompts(PROMPTS).hidden_RTD, wanted.hidden_RTD)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny-flux", "tiny-klein", "tiny-z-image", "tiny-sd3"])
def test_released_encoders_leave_the_gpu_and_still_encode_there(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    base = load_base(name, device="cuda", dtype=torch.float32)
    wanted = base.encode_prompts(PROMPTS)
    base.release_text_encoders()
    base.release_text_encoders()  # once is enough
    found = base.encode_prompts(PROMPTS)
    assert found.hidden_RTD.device == base.device
    torch.testing.assert_close(found.hidden_RTD, wanted.hidden_RTD, atol=1e-4, rtol=1e-4)
    pipeline = base.pipeline()
    large = {"tiny-flux": "text_encoder_2", "tiny-sd3": "text_encoder_3"}
    encoder = getattr(pipeline, large.get(name, "text_encoder"))
    assert all(p.device.type == "cpu" for p in encoder.parameters())
