"""Checks prompts and captions against the token limit of a base's text encoder.

A subject whose identifier is beyond the limit is never learned, which is an error; any other
truncation is a warning. Tokenization is in ``farm.base.tokens``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from farm.errors import Fault
from farm.intake.photos.fields import ListedPhoto
from farm.intake.rows import ManifestRow
from farm.intake.subject import PLACEHOLDER, Subject, names_identifier

__all__ = ["Reader", "judge_length"]

SHOWN_CHARACTERS = 60

Severity = Literal["error", "warning"]
PromptFault = Callable[[str, str, str, Severity], Fault]
"""Makes a fault, with its location, from a prompt's field, message, remedy and severity."""


class Reader(Protocol):
    """How a base reads prompts, such as ``farm.base.tokens.PromptReader``."""

    base: str
    """The base, as the user named it."""
    max_tokens: int
    """Number of a prompt's tokens that it reads."""
    max_windows: int
    """Windows of tokens in which it can read a long prompt; 1 if it reads one length only."""
    class_nouns: tuple[str, ...]
    """The only classes that it can generate; empty if it has no such list."""

    def unread(self, prompt: str, windows: int = 1) -> str:
        """The end of a prompt that is never read where it is read in this many windows."""


def judge_length(
    subject: Subject,
    photos: Sequence[ListedPhoto],
    row: ManifestRow,
    reader: Reader,
    prompt_fault: PromptFault,
) -> Iterator[Fault]:
    """Every truncated prompt and caption of a subject, at the line where it was written.

    Args:
        photos: the subject's photos as listed, for the locations of captions.
        prompt_fault: locates a fault at a prompt of the row or of the manifest's defaults.
    """
    prompts = [("class_prompt", subject.class_prompt)] if subject.recipe.uses_prior else []
    prompts += [("sample_prompts", prompt) for prompt in subject.sample_prompts]
    if any(listed.photo.caption is None for listed in photos):
        prompts.insert(0, ("instance_prompt", subject.instance_prompt))
    for field, prompt in prompts:
        windows = 1 if field == "class_prompt" else _windows(subject, reader)
        found = _cut(subject, prompt, reader, windows, f"the {_words(field)}")
        if found is not None:
            is_taught = field == "instance_prompt"
            yield prompt_fault(field, *found[:2], found[2] if is_taught else "warning")
    for listed in photos:
        if listed.photo.caption is None:
            continue
        name, windows = listed.photo.uri.rsplit("/", 1)[-1], _windows(subject, reader)
        found = _cut(subject, listed.photo.caption, reader, windows, f"the caption of {name}")
        if found is not None:
            yield _caption_fault(subject, listed, row, *found)


def _windows(subject: Subject, reader: Reader) -> int:
    """Windows in which a subject's prompts and captions are read at most."""
    return reader.max_windows if subject.recipe.long_prompts == "chunk" else 1


def _cut(
    subject: Subject, prompt: str, reader: Reader, windows: int, what: str
) -> tuple[str, str, Severity] | None:
    """Message, remedy and severity if a prompt is truncated, or None."""
    text = subject.prompt(prompt)
    unread = reader.unread(text, windows)
    if not unread:
        return None
    end = unread[:SHOWN_CHARACTERS] + ("…" if len(unread) > SHOWN_CHARACTERS else "")
    times = f"{windows} times " if windows > 1 else ""
    limit = f"`{reader.base}` reads {times}{reader.max_tokens} tokens"
    remedy = "shorten it"
    if windows < reader.max_windows and what != "the class prompt":
        remedy += ", or have all of it read with `--set long_prompts=chunk`"
    named = names_identifier(text, subject.identifier)
    if named and not names_identifier(text[: -len(unread)], subject.identifier):
        return (
            f"{what} is cut before it names the subject: {limit}, and never sees `{end}`",
            f"move {PLACEHOLDER} to its beginning, or {remedy}",
            "error",
        )
    return f"{what} is cut: {limit}, and never sees `{end}`", remedy, "warning"


def _caption_fault(
    subject: Subject,
    listed: ListedPhoto,
    row: ManifestRow,
    message: str,
    remedy: str,
    severity: Severity,
) -> Fault:
    written = listed.caption_file
    if written is None:
        return row.fault(listed.path, message, remedy, severity=severity)
    return Fault(
        written.file,
        message,
        remedy,
        line=written.line,
        field="caption",
        subject=subject.id,
        severity=severity,
    )


def _words(field: str) -> str:
    return field.removesuffix("s").replace("_", " ")
