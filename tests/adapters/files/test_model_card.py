"""The model card quotes what customers wrote: nothing in it runs, formats or links."""

import ast

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from pydantic import ValidationError

from farm.adapters.files.model_card import model_card
from farm.adapters.record import AdapterRecord, BaseFamily
from farm.base.names import EMBEDDED_VERDICTS
from farm.recipe import Recipe

HOSTILE = [
    'sks cat").images; __import__("os").system("echo RAN"); print("',
    "sks cat' + chr(97) + '",
    "sks cat\n```\n# A heading\n```python",
    "sks `cat` ``two`` <script>alert(1)</script>",
    "sks [cat](javascript:alert(1)) ![x](http://example.org/x.png)",
    "sks cat | a | table {{jinja}} \\",
    "sks cat \u202e\u2028 \u200b \x85 reversed",
    "---\nlicense: mit\n---\nsks",
]


def card_of(text: str) -> str:
    record = AdapterRecord(
        job_key="k",
        subject_id="tom",
        name=text,
        class_noun=text,
        instance_prompt=text,
        class_prompt=text,
        base_id=text,
        base_fingerprint="f" * 64,
        recipe=Recipe(),
        quality={text: 0.5},
    )
    return model_card(record, [("samples/00.png", text)], "tom.kohya.safetensors")


@pytest.mark.parametrize("text", HOSTILE)
def test_the_snippet_holds_prompts_as_literals(text: str) -> None:
    card = card_of(text)
    snippet = card.split("```python\n", 1)[1].split("\n```\n", 1)[0]
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    assert names == {
        "StableDiffusionPipeline.from_pretrained",
        "pipeline.load_lora_weights",
        "pipeline",
    }
    (prompt,) = next(call.args for call in calls if ast.unparse(call.func) == "pipeline")
    assert ast.literal_eval(prompt) == text
    assert snippet.isprintable() or all(line.isprintable() for line in snippet.splitlines())


@pytest.mark.parametrize("text", HOSTILE)
def test_prose_and_head_hold_words_alone(text: str) -> None:
    card = card_of(text)
    assert ModelCard(card).data.instance_prompt == text
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", *["h2"] * 5]
    html = [token.content.strip() for token in [*tokens, *inline] if token.type.startswith("html")]
    assert html == ["<Gallery />"]
    assert {token.type for token in inline} <= {"text", "code_inline", "image", "text_special"}
    images = [token for token in inline if token.type == "image"]
    assert [image.attrs["src"] for image in images] == ["samples/00.png"]
    cells = [token for token in tokens if token.type in ("td_open", "th_open")]
    assert len(cells) % 2 == 0
    assert "\u202e" not in body


def test_a_record_puts_no_code_no_link_and_no_endless_number_into_the_card() -> None:
    with pytest.raises(ValidationError, match="pipeline"):
        BaseFamily(title="x", pipeline="X\nimport os")
    record = AdapterRecord.model_validate(
        {
            **dict.fromkeys(("subject_id", "name", "class_noun", "instance_prompt"), "tom"),
            **{"job_key": "k", "base_id": "b", "base_fingerprint": "f" * 64},
            "recipe": Recipe(),
            "quality": {"huge": 10**400, "endless": float("inf"), "good": 0.5},
        }
    )
    card = model_card(record, [("samples/x) [go](javascript&colon;run).png", "a")], None)
    assert "good" in card
    assert "huge" not in card
    tokens = MarkdownIt("js-default").parse(card.split("---\n", 2)[2])
    inner = [child for token in tokens for child in token.children or ()]
    assert [child.type for child in inner if child.type in {"link_open", "image"}] == ["image"]


def test_the_card_says_what_a_verdict_on_the_embedded_base_is_worth() -> None:
    assert EMBEDDED_VERDICTS in card_of("embedded")
    assert EMBEDDED_VERDICTS not in card_of("stable-diffusion-v1-5/stable-diffusion-v1-5")


def test_a_name_without_samples_has_a_note_in_their_place() -> None:
    record = AdapterRecord(
        job_key="k",
        subject_id="tom",
        name="tom",
        class_noun="cat",
        instance_prompt="a photo of sks cat",
        class_prompt="a photo of a cat",
        base_id="base",
        base_fingerprint="f" * 64,
        recipe=Recipe(),
    )
    note = "No samples were generated for this name's prompts."
    assert note in model_card(record, [], None)
    assert note not in model_card(record, [("samples/00.png", "sks")], None)
