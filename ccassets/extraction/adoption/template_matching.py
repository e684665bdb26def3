"""Matching of a file's templates with a study's: equal prompts with the right hash, and sound features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ccassets.database.validation import CheckResults
from ccassets.database.validation.contents import TemplateContents
from ccassets.database.writer import TemplateContent
from ccassets.encoders import token_spans
from ccassets.encoders.encoder_contract import EncoderCard
from ccassets.errors import EncoderError
from ccassets.findings import Finding
from ccassets.study.schema import PromptTemplate, Study

if TYPE_CHECKING:
    from ccassets.encoders.tokenizer import Tokens

_TEXTS_OF_OTHERS = {"texts", "study_vocabulary"}
"""Checks of prompts against word lists: they say nothing about whether features belong to their prompts."""


@dataclass(frozen=True, eq=False)
class MatchedTemplate:
    """A template of the file: its position, its id, and whether it has a digest."""

    content: TemplateContent
    file_id: str
    where: str
    has_digest: bool


def usable_templates(results: CheckResults, study: Study, card: EncoderCard) -> dict[str, MatchedTemplate]:
    """The study's templates that the file holds, by the study's ids; the file's ids may differ."""
    stored = results.contents.templates
    sound = {
        template_id: template
        for template_id, template in stored.items()
        if template.texts is not None and not _is_unsound(template, results.findings)
    }
    usable = {}
    for template_id, expected in study.vocabulary.templates().items():
        for candidate in (template_id, *sound):
            if candidate in sound and tuple(sound[candidate].texts or ()) == expected.prompts:
                template = sound[candidate]
                content = _read(template)
                if content.text_features.shape[1] == card.dim:
                    has_digest = "digest" in template.attributes
                    usable[template_id] = MatchedTemplate(content, candidate, template.where, has_digest)
                break
    return usable


def _is_unsound(template: TemplateContents, findings: Sequence[Finding]) -> bool:
    """Whether there is an error about the template or anything in it."""
    places = (template.where, *(f"{template.where}{end}" for end in ("/", "@", " ")))
    return any(
        finding.severity == "error"
        and finding.check not in _TEXTS_OF_OTHERS
        and (finding.where == places[0] or finding.where.startswith(places[1:]))
        for finding in findings
    )


def _read(template: TemplateContents) -> TemplateContent:
    arrays = {name: dataset[...] for name, dataset in template.datasets.items() if name != "texts"}
    return TemplateContent(texts=template.texts or (), **arrays)


def with_tokens(
    content: TemplateContent, template: PromptTemplate, tokenize: Callable[[Sequence[str]], Tokens]
) -> TemplateContent:
    """The template with the tokens of its prompts, which the original scripts do not store.

    They pad to the longest prompt of a template, so its length must be that of the stored token features; where it is
    not, the prompts were tokenized in another way, and the template stays without.
    """
    try:
        tokens = tokenize(template.prompts)
        width = tokens.input_ids.shape[1]
        if content.text_token_features is not None:
            longest = int(tokens.attention_mask.sum(axis=1, dtype=np.int64).max(initial=0))
            stored = content.text_token_features.shape[1]
            if stored not in (longest, width):
                return content
            width = stored
        mask = tokens.attention_mask[:, :width]
        spans = token_spans(tokens.offsets[:, :width], mask, template.subjects)
    except EncoderError:
        return content
    return replace(content, input_ids=tokens.input_ids[:, :width], attention_mask=mask, subject_span=spans)
