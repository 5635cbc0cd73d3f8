"""Checks that prompts can teach the subject: its own must name it, the class prompt must not.

Owns every check of the wording of prompts and captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from farm.errors import Fault
from farm.intake.photos.fields import ListedPhoto
from farm.intake.prompts.foreign_syntax import adapter_tags, emphasis, without_syntax
from farm.intake.prompts.token_limit import Reader, Severity, judge_length
from farm.intake.rows import ManifestRow
from farm.intake.subject import CLASS_NOUN_FIELD, PLACEHOLDER, Subject, names_identifier

__all__ = ["judge_prompts"]

_CHOICE = re.compile(r"\{[^{}]*\|[^{}]*\}|__[\w/-]+__")
"""Wildcards of prompt generators: `{sitting|standing}`, `__place__`."""
_ARTICLE = re.compile(r"(?:an?|the)\s+(?=\S)", re.IGNORECASE)
_QUOTED = re.compile("[\"'“”„‘«](.+)[\"'“”’»]")
_BRACES = re.compile(r"\{[^{}]*\}")


def judge_prompts(
    subject: Subject,
    photos: Sequence[ListedPhoto],
    row: ManifestRow,
    head: ManifestRow,
    reader: Reader | None = None,
) -> list[Fault]:
    """Every fault of a subject's prompts and captions, at the line where the prompt was written.

    Args:
        photos: the subject's photos as listed, for the locations of captions.
        head: the manifest's head, for prompts that are not in the row.
        reader: how the base reads prompts; None does not check their length.
    """
    place = _Places(row, head)
    faults = [*_identifier_faults(subject, place), *_caption_faults(subject, photos, row)]
    for field in ("instance_prompt", "class_prompt", "sample_prompts"):
        value = getattr(subject, field)
        for text in (value,) if isinstance(value, str) else value:
            if unknown := _BRACES.search(text):
                message = f"{unknown.group()} is not a known placeholder"
                faults.append(place.fault(field, message, _brace_remedy()))
            for syntax in (*adapter_tags(text), *emphasis(text)):
                message = f"`{syntax[:60]}` has no meaning here and is read as plain words"
                remedy = without_syntax(syntax)
                faults.append(place.fault(field, message, remedy, is_warning=True))
    if reader is not None:
        faults += judge_length(subject, photos, row, reader, place.fault_of)
    return faults


class _Places:
    """Where a prompt was written: on the subject, in the defaults, or nowhere."""

    def __init__(self, row: ManifestRow, head: ManifestRow) -> None:
        self._row, self._head = row, head

    def fault(self, field: str, message: str, remedy: str, *, is_warning: bool = False) -> Fault:
        return self.fault_of(field, message, remedy, "warning" if is_warning else "error")

    def fault_of(self, field: str, message: str, remedy: str, severity: Severity) -> Fault:
        defaults = self._head.value.get("defaults")
        if field in self._row.value or not isinstance(defaults, dict) or field not in defaults:
            return self._row.fault((field,), message, remedy, severity=severity)
        # one wrong default is one fault, however many subjects inherit it
        return self._head.fault(("defaults", field), message, remedy, severity=severity)


def _brace_remedy() -> str:
    return f"write {CLASS_NOUN_FIELD} for the class noun, or drop the braces"


def _identifier_faults(subject: Subject, place: _Places) -> Iterator[Fault]:
    identifier = subject.identifier
    if not names_identifier(subject.instance_prompt, identifier):
        yield place.fault(
            "instance_prompt",
            f"`{subject.instance_prompt}` does not name the subject",
            f"put {PLACEHOLDER} where its identifier belongs: `a photo of {PLACEHOLDER} …`",
        )
    if names_identifier(subject.class_noun, identifier):
        yield place.fault(
            "identifier",
            f"the identifier `{identifier}` is a word of the class noun",
            f"choose a token without a meaning, such as `{_other_token(identifier)}`",
        )
    elif subject.recipe.uses_prior and names_identifier(subject.class_prompt, identifier):
        yield place.fault(
            "class_prompt",
            f"`{subject.class_prompt}` names the subject; the prior set shows the class",
            f"write it without {PLACEHOLDER} and without `{identifier}`",
        )
    if match := _ARTICLE.match(subject.class_noun):
        message = f"the class noun `{subject.class_noun}` begins with an article, as prompts do"
        noun = subject.class_noun[match.end() :]
        yield place.fault("class_noun", message, f"leave it out: `{noun}`", is_warning=True)
    if match := _QUOTED.fullmatch(subject.class_noun):
        message = f"the quotes around the class noun `{subject.class_noun}` are part of it"
        yield place.fault("class_noun", message, f"leave them out: `{match[1]}`", is_warning=True)
    samples = subject.sample_prompts
    # one prompt of the class alone helps to watch for drift, but not all of them
    if samples and not any(names_identifier(prompt, identifier) for prompt in samples):
        message = "no sample prompt names the subject, so all of them show the class"
        yield place.fault("sample_prompts", message, f"put {PLACEHOLDER} into one", is_warning=True)


def _other_token(identifier: str) -> str:
    return "ohwx" if identifier.casefold() == "sks" else "sks"


def _caption_faults(
    subject: Subject, photos: Sequence[ListedPhoto], row: ManifestRow
) -> Iterator[Fault]:
    for listed in photos:
        caption = listed.photo.caption
        if caption is not None and (choice := _CHOICE.search(caption)):
            message = f"the wildcard `{choice.group()[:60]}` in its caption is trained literally"
            yield _caption_fault(
                subject, listed, row, message, "write plain words", is_warning=True
            )
        for syntax in (*adapter_tags(caption), *emphasis(caption)) if caption else ():
            message = f"`{syntax[:60]}` in its caption has no meaning here and is trained literally"
            remedy = without_syntax(syntax)
            yield _caption_fault(subject, listed, row, message, remedy, is_warning=True)
        if caption is None or names_identifier(caption, subject.identifier):
            continue
        name = listed.photo.uri.rsplit("/", 1)[-1]
        message = f"the caption of {name} does not name the subject: `{caption[:80]}`"
        is_own = listed.caption_file is None
        remedy = f"put {PLACEHOLDER} into it" if is_own else row.style(listed.path).remedy
        yield _caption_fault(subject, listed, row, message, remedy)


def _caption_fault(
    subject: Subject,
    listed: ListedPhoto,
    row: ManifestRow,
    message: str,
    remedy: str,
    *,
    is_warning: bool = False,
) -> Fault:
    """A fault of a caption, in the file that holds it."""
    severity: Severity = "warning" if is_warning else "error"
    written = listed.caption_file
    if written is None:
        return row.fault(listed.path, message, remedy, severity=severity)
    return Fault(
        written.file, message, remedy, written.line, "caption", subject.id, severity=severity
    )
