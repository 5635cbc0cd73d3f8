"""The directions of the text embedding that carry identifiers, and the code of each identifier.

The world's captions use few of the text encoder's dimensions: the 48 weakest of 128 directions hold
0.1 % of their embeddings' energy. Identifiers are written there. The UNet's projections of the
text are made blind to these directions, so an identifier changes no image of the base, and an
adapter reads it as clearly as a colour.

Legend: N texts, T tokens, D text width, Q directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPTokenizer

from farm.base.embedded.tokenizer import known_words
from farm.base.embedded.world.words import RARE_TOKENS

__all__ = ["NUM_DIRECTIONS", "IdentifierCodes", "blind", "unused_directions"]

NUM_DIRECTIONS = 32
"""Directions that carry identifiers: one per rare token, one for prompts without an identifier, and
the rest for all other words that the tokenizer splits."""
RARE_WEIGHT = 2.0
"""Weight of a rare token against split words: unknown words hardly change a prompt's subject."""


@torch.no_grad()
def unused_directions(states_NTD: Tensor, num: int = NUM_DIRECTIONS) -> Tensor:
    """The `num` orthonormal directions (D, Q) in which embeddings have the least energy."""
    flat = states_NTD.flatten(0, 1).double()
    _, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    weakest: Tensor = vectors[:, :num].float()
    return weakest


@dataclass(frozen=True)
class IdentifierCodes:
    """The code, a unit vector of Q numbers, of the identifiers before each position of a text."""

    rare_VQ: Tensor
    """Codes of the rare tokens; zero for other tokens of the vocabulary."""
    split_VQ: Tensor
    """Codes of the tokens into which unknown words are split."""
    none_Q: Tensor
    """The code of a prompt without an identifier. It keeps the embeddings' norms equal."""

    @classmethod
    def of(cls, tokenizer: CLIPTokenizer) -> IdentifierCodes:
        """Orthonormal codes for the rare tokens and for none; random ones for split words."""
        num = len(RARE_TOKENS)
        table = torch.eye(NUM_DIRECTIONS)
        generator = torch.Generator().manual_seed(0)
        split = torch.zeros(len(tokenizer), NUM_DIRECTIONS)
        random = torch.randn(len(tokenizer), NUM_DIRECTIONS - num - 1, generator=generator)
        split[:, num + 1 :] = normalize(random, dim=1)
        known = tokenizer(known_words(), add_special_tokens=False).input_ids
        split[[ids[0] for ids in known]] = 0
        split[[tokenizer.bos_token_id, tokenizer.eos_token_id]] = 0
        rare = torch.zeros_like(split)
        for index, word in enumerate(RARE_TOKENS):
            rare[tokenizer.convert_tokens_to_ids(f"{word}</w>")] = table[index]
        return cls(rare, split, table[num])

    def __call__(self, ids_NT: Tensor) -> Tensor:
        """Codes (N, T, Q) of token ids: of the words up to each position, as in a causal text
        encoder."""
        rare, split = (
            normalize(table[ids_NT].cumsum(1), dim=2) for table in (self.rare_VQ, self.split_VQ)
        )
        codes = normalize(RARE_WEIGHT * rare + split, dim=2)
        is_none = codes.norm(dim=2, keepdim=True) < 0.5
        return torch.where(is_none, self.none_Q, codes)


@torch.no_grad()
def blind(unet: UNet2DConditionModel, directions_DQ: Tensor) -> None:
    """Make the UNet's projections of the text ignore some directions of it."""
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.weight -= (module.weight @ directions_DQ) @ directions_DQ.T
