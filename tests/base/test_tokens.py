"""The part of a prompt that a base ignores, found with its tokenizer alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.base.interface import Base
from farm.base.loading import embedded_folder, load_base
from farm.base.tokens import PromptReader, prompt_reader
from farm.errors import BaseModelError

LONG = ", ".join(f"a wooden table with detail number {number}" for number in range(20))


@pytest.fixture(scope="module")
def reader() -> PromptReader:
    found = prompt_reader("embedded")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("embedded")


def test_a_prompt_that_fits_is_read_whole(reader: PromptReader) -> None:
    assert reader.max_tokens == 32
    assert reader.unread("a photo of sks cat in space") == ""
    assert reader.unread(" ".join(["cat"] * 30)) == ""
    assert reader.unread(" ".join(["cat"] * 31)) == "cat"


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=60), count=st.integers(0, 40))
def test_any_text_is_cut_where_the_pipeline_cuts_it(
    reader: PromptReader, base: Base, text: str, count: int
) -> None:
    prompt = text + " cat" * count
    unread = reader.unread(prompt)
    assert prompt.endswith(unread)
    assert base.unread(prompt) == unread


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.sampled_from(["cat", "a", "sks", "space", "red", ","]), max_size=60))
def test_cutting_off_what_is_unread_changes_no_token(
    reader: PromptReader, base: Base, words: list[str]
) -> None:
    prompt = " ".join(words)
    unread = reader.unread(prompt)
    kept = prompt[: len(prompt) - len(unread)]
    both = base.tokenize([prompt, kept])
    for tensor in both.tensors.values():
        assert (tensor[0] == tensor[1]).all()
    assert bool(unread) == (len(words) > reader.max_tokens - 2)


def test_no_torch_and_no_model_is_loaded_for_it() -> None:
    script = (
        "import sys\nfrom farm.base.tokens import prompt_reader\n"
        f"assert prompt_reader('embedded').unread({LONG!r})\n"
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_folder_with_a_vocabulary_alone_reads_the_same(
    reader: PromptReader, tmp_path: Path
) -> None:
    folder = tmp_path / "base" / "tokenizer"
    shutil.copytree(embedded_folder() / "tokenizer", folder)
    (folder / "tokenizer.json").unlink()  # as Stable Diffusion v1-5 comes
    for name in (str(tmp_path / "base"), (tmp_path / "base").as_uri()):
        other = prompt_reader(name)
        assert other is not None
        assert other.max_tokens == reader.max_tokens
        assert other.unread(LONG) == reader.unread(LONG) != ""


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="its tokenizer cannot be read"):
        prompt_reader(str(tmp_path))


@pytest.mark.parametrize("name", ["nope", "./missing/base"])
def test_a_base_that_does_not_exist_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(BaseModelError, match="there is no base"):
        prompt_reader(name)
