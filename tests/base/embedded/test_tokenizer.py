"""The tokenizer: small, real, and able to encode any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from farm.base.embedded.tokenizer import MAX_TOKENS, build_tokenizer, known_words
from farm.base.embedded.world import RARE_TOKENS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_every_word_of_the_world_and_every_rare_token_is_one_token(tokenizer):
    assert all(len(tokenizer(word).input_ids) == 3 for word in known_words())
    assert {"sks", "zwx", "ohwx"} <= set(RARE_TOKENS)


@given(text=st.text(max_size=40))
def test_any_text_is_encoded_within_the_vocabulary(tokenizer, text):
    ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids
    assert 2 <= len(ids) <= MAX_TOKENS
    assert all(0 <= token < len(tokenizer) for token in ids)
    assert (
        tokenizer.unk_token_id not in ids[1:-1] or tokenizer.unk_token_id == tokenizer.eos_token_id
    )


def test_text_comes_back_from_its_tokens(tokenizer):
    ids = tokenizer("a photo of a sks cat in zürich", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids).strip() == "a photo of a sks cat in zürich"


def test_the_end_token_is_the_highest_id_as_clip_pooling_may_assume(tokenizer):
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
