"""The HTTP interface, used by OpenAI's own client over a real connection."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from support.endpoint import LiveEndpoint, are_same, eventually, pixels_of
from support.serving.openai_client import FEW, generate

from farm.adapters.record import BaseFamily
from farm.base.generate import generate_images
from farm.serving.http.image_metadata import read_image_metadata

# -- generating -----------------------------------------------------------------------------------


def test_the_bare_base_generates_what_the_base_alone_generates(
    endpoint: LiveEndpoint, client: openai.OpenAI
) -> None:
    answer = generate(client, "tiny", "a red fox")
    alone = generate_images(endpoint.base, ["a red fox"], [5], steps=3, guidance=5.0)
    assert np.abs(pixels_of(answer.data[0].b64_json) - alone[0].numpy()).max() <= 1
    assert answer.size == "64x64"


def test_an_adapter_changes_the_picture_and_each_its_own_way(client: openai.OpenAI) -> None:
    base, rex, tom = (
        pixels_of(generate(client, model, "a photo").data[0].b64_json)
        for model in ("tiny", "rex", "tom")
    )
    assert np.abs(base - rex).mean() > 1
    assert np.abs(base - tom).mean() > 1
    assert np.abs(rex - tom).mean() > 1


def test_the_same_request_gives_the_same_picture_beside_others(client: openai.OpenAI) -> None:
    alone = pixels_of(generate(client, "rex", "a photo").data[0].b64_json)
    results: dict[int, np.ndarray] = {}

    def ask(index: int) -> None:
        model, seed = ("rex", 5) if index == 0 else (("tom", "tiny")[index % 2], index)
        answer = generate(client, model, "a photo", seed=seed)
        results[index] = pixels_of(answer.data[0].b64_json)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert are_same(results[0], alone)


def test_several_pictures_count_their_seeds_up(client: openai.OpenAI) -> None:
    three = client.images.generate(model="rex", prompt="a photo", n=3, extra_body=FEW)
    assert [item.seed for item in three.data] == [5, 6, 7]
    third = generate(client, "rex", "a photo", seed=7)
    assert are_same(pixels_of(three.data[2].b64_json), pixels_of(third.data[0].b64_json))


def test_v_stands_for_the_subject_of_the_model(client: openai.OpenAI) -> None:
    answer = generate(client, "rex", "a photo of [V] dog and [V:rex]")
    assert answer.data[0].revised_prompt == "a photo of zwx dog and zwx"


def test_the_answer_notes_a_prompt_that_does_not_name_the_subject(client: openai.OpenAI) -> None:
    unnamed = generate(client, "rex", "a (dog:1.2) <lora:tom:0.8>").data[0]
    assert unnamed.notes == unnamed.receipt["notes"]
    assert [note.split(";")[0] for note in unnamed.notes] == [
        "prompt: it does not name the subject of rex",
        "prompt: <lora:tom:0.8> is read as plain words",
        "prompt: (dog:1.2) is read as plain words",
    ]
    named = generate(client, "rex", "a photo of [V] dog").data[0]
    base = generate(client, "tiny", "a photo of a dog").data[0]
    assert named.notes == base.notes == []


def test_the_answer_notes_an_additional_adapter_that_is_unnamed_or_of_another_class(
    client: openai.OpenAI,
) -> None:
    uses = [{"model": "tom"}]
    other = generate(client, "tiny", "a photo of [V] dog", adapters=uses).data[0]
    assert other.notes == [
        "prompt: it does not name the class of tom, cat; write it after the subject, as in: "
        "a photo of [V] cat"
    ]
    unnamed = generate(client, "rex", "a photo of [V] dog", adapters=uses).data[0]
    assert unnamed.notes == [
        "prompt: it does not name the subject of tom; put [V:tom] where the subject belongs, as "
        "in: a photo of [V:tom] cat"
    ]


def test_two_adapters_on_one_picture_each_by_its_own_name(client: openai.OpenAI) -> None:
    uses = [{"model": "tom", "weight": 0.7}]
    both = generate(client, "rex", "[V] dog beside [V:tom] cat", adapters=uses)
    assert both.data[0].revised_prompt == "zwx dog beside qtr cat"
    assert [use["weight"] for use in both.data[0].receipt["adapters"]] == [1.0, 0.7]
    one = generate(client, "rex", "zwx dog beside qtr cat")
    difference = pixels_of(both.data[0].b64_json) - pixels_of(one.data[0].b64_json)
    assert np.abs(difference).mean() > 0.5


def test_a_weight_of_nothing_is_the_bare_base(client: openai.OpenAI) -> None:
    none = pixels_of(generate(client, "rex", "a photo", adapter_weight=0.0).data[0].b64_json)
    base = pixels_of(generate(client, "tiny", "a photo").data[0].b64_json)
    assert are_same(none, base)


def test_v_without_a_subject_is_refused(client: openai.OpenAI) -> None:
    for prompt in ("a photo of [V] dog", "[V:tom]"):
        with pytest.raises(openai.BadRequestError, match="no adapter of this request"):
            generate(client, "tiny", prompt)


def test_size_and_format_are_what_was_asked(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model="rex", prompt="a photo", size="96x64", output_format="jpeg", extra_body=FEW
    )
    assert pixels_of(answer.data[0].b64_json).shape == (64, 96, 3)
    assert base64.b64decode(answer.data[0].b64_json)[:3] == b"\xff\xd8\xff"
    assert (answer.size, answer.output_format) == ("96x64", "jpeg")


def test_guidance_steps_scheduler_and_negative_prompt_count(client: openai.OpenAI) -> None:
    pictures = [
        pixels_of(generate(client, "tiny", "a photo", **change).data[0].b64_json)
        for change in (
            {},
            {"guidance_scale": 1.0},
            {"num_inference_steps": 5},
            {"scheduler": "euler"},
            {"negative_prompt": "blue"},
        )
    ]
    for other in pictures[1:]:
        assert np.abs(pictures[0] - other).max() > 0


def test_every_picture_carries_its_receipt_in_the_answer_and_in_the_file(
    endpoint: LiveEndpoint, client: openai.OpenAI
) -> None:
    record = endpoint.registry.record(endpoint.registry.resolve("default", "rex").job_key)
    answer = generate(client, "rex", "a photo of [V] dog")
    receipt = answer.data[0].receipt
    assert read_image_metadata(base64.b64decode(answer.data[0].b64_json)) == receipt
    assert receipt["base"] == "tiny"
    assert receipt["base_fingerprint"] == endpoint.base.fingerprint
    assert receipt["prompt"] == "a photo of zwx dog"
    assert (receipt["seed"], receipt["steps"]) == (5, 3)
    assert receipt["adapters"][0]["key"] == record.job_key
    assert receipt["adapters"][0]["sha256"] in record.files.values()
    assert receipt["seconds"]["total"] > 0
    assert receipt["request"] == answer._request_id


def test_a_link_gives_the_same_bytes_without_a_key(client: openai.OpenAI) -> None:
    inline = generate(client, "rex", "a photo").data[0]
    linked = client.images.generate(
        model="rex", prompt="a photo", response_format="url", extra_body=FEW
    ).data[0]
    assert linked.b64_json is None
    fetched = httpx2.get(linked.url)
    assert fetched.headers["content-type"] == "image/png"
    shown = pixels_of(base64.b64encode(fetched.content).decode())
    assert are_same(shown, pixels_of(inline.b64_json))
    assert httpx2.get(linked.url + "0").status_code == 404


# -- models ------------------------------------------------------------------------------------


def test_models_are_the_base_and_the_adapters(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"tiny", "rex", "tom"} <= set(models)
    assert models["rex"].owned_by == "default"
    assert models["rex"].created > 1_700_000_000


def test_one_model_tells_what_it_is(client: openai.OpenAI) -> None:
    model = client.models.retrieve("tom")
    assert (model.class_noun, model.identifier) == ("cat", "qtr")
    pinned = client.models.retrieve(f"tom@{model.job_key}")
    assert pinned.job_key == model.job_key
    assert client.models.retrieve("tiny").owned_by == "farm"


def test_an_adapter_shows_its_sample_pictures(endpoint: LiveEndpoint) -> None:
    sample = httpx2.get(f"{endpoint.url}/v1/models/rex/samples/0")
    assert sample.headers["content-type"] == "image/png"
    assert sample.content[:4] == b"\x89PNG"
    for index in ("1", "-1", "99999999999999999999"):
        assert httpx2.get(f"{endpoint.url}/v1/models/rex/samples/{index}").status_code == 404


# -- adapters that come and go -----------------------------------------------------------------


def test_a_new_adapter_is_generated_with_at_the_next_request(
    endpoint: LiveEndpoint, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.NotFoundError):
        generate(client, "newcomer", "a photo")
    endpoint.publish("newcomer", seed=11)
    picture = pixels_of(generate(client, "newcomer", "a photo").data[0].b64_json)
    base = pixels_of(generate(client, "tiny", "a photo").data[0].b64_json)
    assert np.abs(picture - base).mean() > 1


def test_a_retrained_name_is_picked_up_and_the_old_version_can_be_pinned(
    endpoint: LiveEndpoint, client: openai.OpenAI
) -> None:
    old = endpoint.publish("again", seed=20)
    before = pixels_of(generate(client, "again", "a photo").data[0].b64_json)
    new = endpoint.publish("again", seed=21)

    def is_new() -> bool:
        used = generate(client, "again", "a photo").data[0].receipt["adapters"][0]["key"]
        return bool(used == new.job_key)

    eventually(is_new)
    after = pixels_of(generate(client, "again", "a photo").data[0].b64_json)
    assert np.abs(before - after).mean() > 1
    pinned = pixels_of(generate(client, f"again@{old.job_key}", "a photo").data[0].b64_json)
    assert are_same(before, pinned)


def test_a_revoked_adapter_is_refused_within_seconds_by_any_name(
    endpoint: LiveEndpoint, client: openai.OpenAI
) -> None:
    record = endpoint.publish("gone", seed=30)
    generate(client, "gone", "a photo")
    endpoint.registry.revoke("default", "gone", reason="asked to")

    def is_refused(model: str) -> bool:
        try:
            generate(client, model, "a photo")
        except openai.NotFoundError:
            return True
        return False

    eventually(lambda: is_refused("gone"))
    assert is_refused(f"gone@{record.job_key}")
    eventually(lambda: "gone" not in {model.id for model in client.models.list()})
    generate(client, "rex", "a photo")


def test_an_adapter_with_damaged_files_fails_its_own_requests_clearly(
    endpoint: LiveEndpoint, client: openai.OpenAI
) -> None:
    record = endpoint.publish("damaged", seed=40)
    for name in record.files:
        if name.endswith(".safetensors"):
            endpoint.store.write(f"adapters/{record.job_key}/{name}", b"\0" * 100)
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        generate(client, "damaged", "a photo")
    assert caught.value.body["code"] == "adapter_invalid"
    assert "/" not in caught.value.body["message"].replace("/v1/", "")
    generate(client, "rex", "a photo")


def test_an_adapter_of_another_base_is_refused(
    endpoint: LiveEndpoint, client: openai.OpenAI
) -> None:
    other = BaseFamily(title="Stable Diffusion XL", pipeline="StableDiffusionXLPipeline")
    record = endpoint.publish("stranger", seed=50, base_fingerprint="ab" * 32)
    record = record.model_copy(update={"base_family": other})
    endpoint.store.write(f"adapters/{record.job_key}/adapter.json", record.to_json().encode())
    with pytest.raises(
        openai.BadRequestError, match="another base.*on Stable Diffusion XL, not on Stable Diff"
    ):
        generate(client, "stranger", "a photo")


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 3.5}, "num_inference_steps"),
        ({"seed": -2}, "seed"),
        ({"scheduler": "magic"}, "scheduler"),
        ({"size": "65x64"}, "size"),
        ({"size": "big"}, "size"),
        ({"adapters": [{"model": "rex", "weight": 99}]}, "adapters.0.weight"),
        ({"surprise": 1}, "surprise"),
        ({"negative_prompt": "x" * 4001}, "negative_prompt"),
        ({"n": 11}, "n"),
    ],
)
def test_a_wrong_field_is_named(client: openai.OpenAI, extra: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model="tiny", prompt="a photo", extra_body=extra)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_body_that_is_not_json_is_described(endpoint: LiveEndpoint) -> None:
    answer = httpx2.post(
        f"{endpoint.url}/v1/images/generations",
        content=b'{"prompt": "a"',
        headers={"content-type": "application/json"},
    )
    error = answer.json()["error"]
    assert error["message"].startswith("the body is not valid JSON at character 14: ")
    assert (answer.status_code, error["param"]) == (400, None)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/a%2Fb", 404),
        ("GET", "/v1/models/nobody", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/images/generations", 405),
        ("GET", "/v1/models?limit=0", 400),
        ("GET", "/v1/pictures/x.png", 404),
    ],
)
def test_every_error_has_openais_shape_and_a_request_id(
    endpoint: LiveEndpoint, method: str, path: str, status: int
) -> None:
    answer = httpx2.request(method, endpoint.url + path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    if status == 405:
        assert answer.headers["allow"] in ("GET", "POST")


def test_a_callers_own_request_id_is_kept_if_it_is_plain(endpoint: LiveEndpoint) -> None:
    url = f"{endpoint.url}/health"
    assert httpx2.get(url, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    bent = httpx2.get(url, headers={"x-request-id": "a b<c>"}).headers["x-request-id"]
    assert bent.startswith("req_")


def test_a_body_beyond_the_limit_is_cut_off_with_413(endpoint: LiveEndpoint) -> None:
    url = f"{endpoint.url}/v1/images/generations"
    too_long = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(too_long), 65536):
            yield too_long[start : start + 65536]

    for content in (too_long, chunks()):
        try:
            answer = httpx2.post(url, content=content, headers={"content-type": "application/json"})
        except httpx2.TransportError:
            continue  # cut off while still sending
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
    assert httpx2.get(f"{endpoint.url}/health").status_code == 200


def test_a_page_that_bends_its_own_name_to_localhost_is_refused(endpoint: LiveEndpoint) -> None:
    answer = httpx2.get(f"{endpoint.url}/v1/models", headers={"host": "evil.example:80"})
    assert answer.status_code == 403
