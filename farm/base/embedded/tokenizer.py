"""The embedded base's tokenizer: a real CLIP tokenizer with a small vocabulary that still encodes
any text.

Owns which words are single tokens. It is byte-level, so any text can be encoded; every word of the
synthetic world, every word of the usual DreamBooth prompts and every rare token is one token.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTokenizer

from farm.base.embedded.world.words import (
    ACCESSORIES,
    CLASS_NOUNS,
    COLOURS,
    MARKS,
    PLACES,
    POSES,
    RARE_TOKENS,
)

MAX_TOKENS = 32
"""Length of a prompt in tokens, including start and end; 32 fit the world's longest caption."""

START, END = "<|startoftext|>", "<|endoftext|>"

_PHRASING = """
a an the of in on at with wearing that is and or by to from for under over near next background
photo picture image drawing painting sketch pencil flat good photos pictures drawings one two
three four five my his her its this , . ! ? : ; - ' " ( )
"""

_PROMPT_WORDS = """
rendition close up cropped bright dark clean dirty cool weird small large big tiny cute nice
depiction photography style jungle cobblestone street front purple rug wooden floor city behind
blue house mountain wheat field tree autumn leaves eiffel tower floating water top green grass
forest mirror sidewalk crowded paper road pink fabric shaped cube shiny wet santa hat rainbow
scarf black top glasses police outfit chef firefighter pilot yellow shirt witch wizard cloud
ocean milk sea river lake sky moon sun star planet garden park room bed table chair night day
morning evening winter summer spring rain snowy sunny red dress boots bow tie collar bag
backpack toy stuffed animal vase bowl can candle clock sneaker boot sunglasses monster dragon
dinosaur duck plushie berry person man woman boy girl baby horse cow sheep pig rabbit mouse lion
tiger bear frog flower cup bottle book phone computer guitar piano train plane boat bike bus
truck shoe running walking flying swimming eating reading playing riding happy sad angry old new
young colorful oil watercolor anime cartoon realistic art artwork render detailed dot dots
stripes striped stars crown blurry low quality ugly bad gold silver looking holding no not
without
"""


def known_words() -> list[str]:
    """Every word that must be one token, without duplicates."""
    phrases = (*CLASS_NOUNS, *COLOURS, *POSES, *PLACES, *ACCESSORIES, *MARKS)
    words = [word for text in (*phrases, _PHRASING, _PROMPT_WORDS) for word in text.split()]
    return list(dict.fromkeys([*words, *RARE_TOKENS]))


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer's files into a folder and load it from there."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = sorted(_byte_symbols())
    merges: list[tuple[str, str]] = []
    for word in known_words():
        pieces = _split(word, merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _split(word, merges)
    names = symbols + [symbol + "</w>" for symbol in symbols]
    names += dict.fromkeys(first + second for first, second in merges)
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys([*names, START, END]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(folder)
    loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return loaded


def _byte_symbols() -> list[str]:
    """The printable characters that byte-level BPE assigns to the 256 bytes (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def _split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Encode one ASCII word by applying the merges, earliest first."""
    rank = {merge: index for index, merge in enumerate(merges)}
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = list(zip(pieces, pieces[1:], strict=False))
        best = min(pairs, key=lambda pair: rank.get(pair, len(merges)))
        if best not in rank:
            break
        at = pairs.index(best)
        pieces[at : at + 2] = [best[0] + best[1]]
    return pieces
