"""Pictures whose prompts are read in windows, in one batch with usual ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from support.endpoint import live_endpoint

from farm.adapters.registry import Registry
from farm.base.generate import generate_images
from farm.base.interface import Base
from farm.serving.engine.engine import Engine
from farm.serving.request import AdapterRef, GenerationRequest

LONG = "a wooden table with a red ball, a blue cup and sks cat"
PROMPTS = ("a photo of sks cat", LONG, f"{LONG}, {LONG}")
OPTIONS = {"steps": 3, "guidance": 4.0}


def requests(prompts: tuple[str, ...], **fields: object) -> list[GenerationRequest]:
    return [
        GenerationRequest(f"{i}", prompt, seed=i, long_prompts="chunk", **OPTIONS, **fields)
        for i, prompt in enumerate(prompts)
    ]


def test_pictures_of_one_batch_equal_those_generated_alone(
    base: Base, make_engine: Callable[..., Engine]
) -> None:
    wanted = [
        generate_images(base, [prompt], [i], chunked=[True], **OPTIONS)[0].numpy().astype(int)
        for i, prompt in enumerate(PROMPTS)
    ]
    engine = make_engine()
    tickets = [engine.submit(request) for request in requests(PROMPTS)]
    for ticket, alone in zip(tickets, wanted, strict=True):
        picture = ticket.result(60)
        assert np.abs(picture.pixels.astype(int) - alone).max() <= 1
        assert picture.metadata["long_prompts"] == "chunk"
        assert picture.metadata["notes"] == []


def test_text_layers_of_adapters_change_every_window(
    base: Base,
    committed: tuple[Registry, list[AdapterRef]],
    make_engine: Callable[..., Engine],
) -> None:
    registry, refs = committed
    engine = make_engine(registry, text_encoder_modules=("q_proj", "k_proj", "v_proj", "out_proj"))
    pictures = [
        engine.submit(request).result(60).pixels
        for weight in (0.0, 1.0)
        for request in requests((LONG,), adapters=((refs[-1], weight),))
    ]
    assert (pictures[0] != pictures[1]).any()


def test_a_cut_prompt_says_what_was_not_read(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    (note,) = engine.submit(GenerationRequest("cut", LONG, **OPTIONS)).result(60).metadata["notes"]
    assert note.endswith(LONG[-8:])
    assert engine.submit(requests(PROMPTS)[1]).result(60).metadata["notes"] == []


def test_a_request_takes_the_choice_of_its_adapters_training(tmp_path) -> None:
    with live_endpoint(tmp_path) as endpoint:
        endpoint.publish("rex", long_prompts="chunk")
        client = endpoint.openai()

        def generated(**fields: object) -> dict:
            answer = client.images.generate(
                model="rex",
                prompt=LONG,
                size="64x64",
                extra_body={"num_inference_steps": 1, "seed": 1, **fields},
            )
            return answer.data[0].model_dump()["receipt"]

        assert generated()["long_prompts"] == "chunk"
        cut = generated(long_prompts="cut")
        assert cut["long_prompts"] == "cut"
        assert any("did not read its end" in note for note in cut["notes"])
