"""Checks of a file against the study that asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ccassets.database.attributes import section
from ccassets.database.layout import IMAGE_TOKEN_FEATURES
from ccassets.database.validation.contents import Contents
from ccassets.database.validation.finding_collector import FindingCollector, listed, rows_text
from ccassets.database.validation.row_rules import split_rows
from ccassets.database.validation.text_rules import difference_text, stale_templates

if TYPE_CHECKING:
    from ccassets.study.schema import Study

_ALWAYS_TOKENS = {"conceptclip", "phantom"}


def check_study(contents: Contents, study: Study, findings: FindingCollector) -> None:
    """Vocabulary, splits, tokens, limit and encoder of a database against a study; parts have nothing to compare."""
    if contents.kind not in {"database", "text-only"}:
        return
    _check_vocabulary(contents, study, findings)
    if contents.kind == "text-only":
        findings.add("study_splits", "/", "expected every split of the study; a text-only file has no images")
    else:
        _check_splits(contents, study, findings)
        _check_tokens(contents, study, findings)
        _check_limit(contents, study, findings)
        _check_encoder(contents, study, findings)


def _check_vocabulary(contents: Contents, study: Study, findings: FindingCollector) -> None:
    vocabulary = study.vocabulary
    lists: dict[str, Sequence[str]] = {
        "label_texts": vocabulary.labels.words,
        "prompt_temp_for_labels": vocabulary.labels.templates,
        "concept_texts": vocabulary.concepts.texts,
        "prompt_temp_for_concepts": vocabulary.concepts.templates,
    }
    for name, expected in lists.items():
        different = difference_text(expected, contents.word_lists.get(name, expected))
        if different:
            findings.add("study_vocabulary", f"/@{name}", f"{name} differs from the study's: {different}")
    templates = vocabulary.templates()
    for template_id, template in templates.items():
        stored = contents.templates.get(template_id)
        if stored is None:
            where = f"/templates/{template_id}"
            findings.add("study_vocabulary", where, f"expected template {template_id} of the study, found none")
        elif stored.texts is not None:
            different = difference_text(template.prompts, stored.texts)
            if different:
                findings.add(
                    "study_vocabulary", stored.where, f"template {template_id} differs from the study's: {different}"
                )
    # Templates left over from a longer list have a warning of their own, and the study's database leaves them out.
    others = [
        template_id for template_id in contents.templates if template_id not in {*templates, *stale_templates(contents)}
    ]
    if others:
        findings.add(
            "study_vocabulary",
            "/templates",
            f"expected the study's {len(templates)} templates, found {listed(others)} besides",
        )


def _check_splits(contents: Contents, study: Study, findings: FindingCollector) -> None:
    if contents.split is None:
        return
    counts = split_rows(contents)
    known = {**(contents.split_counts or {}), **counts}
    missing = [repr(split) for split in study.splits if split not in known]
    if missing:
        findings.add("study_splits", "/split", f"expected every split of the study, found no rows of {listed(missing)}")
    others = [split for split in counts if split not in study.splits]
    if others:
        text = listed([f"{split!r} ({rows_text(contents.split.rows_of(split))})" for split in others])
        findings.add(
            "foreign_split",
            "/split",
            f"expected only the study's splits {listed([repr(s) for s in study.splits])}, "
            f"found rows of {text} too. The rows of the study's own splits are not affected.",
        )
    order = [split for split in counts if split in study.splits]
    expected = [split for split in study.splits if split in counts]
    if order != expected:
        findings.add(
            "study_splits",
            "/split",
            f"expected the study's order, {listed([repr(s) for s in expected], 6)}, "
            f"found {listed([repr(s) for s in order], 6)}",
        )


def _check_tokens(contents: Contents, study: Study, findings: FindingCollector) -> None:
    stored = IMAGE_TOKEN_FEATURES in contents.datasets
    if stored and not study.encoder.tokens:
        findings.add(
            "study_tokens", f"/{IMAGE_TOKEN_FEATURES}", "expected no token features (tokens: false), found some"
        )
    if not stored and study.encoder.tokens and study.encoder.kind in _ALWAYS_TOKENS:
        findings.add("study_tokens", f"/{IMAGE_TOKEN_FEATURES}", "expected token features (tokens: true), found none")


def _check_limit(contents: Contents, study: Study, findings: FindingCollector) -> None:
    expected, stored = study.extraction.limit, contents.attributes.get("limit")
    if expected != stored:
        findings.add(
            "study_limit", "/@limit", f"expected limit {expected or 'none'} of the study, found {stored or 'none'}"
        )


def _check_encoder(contents: Contents, study: Study, findings: FindingCollector) -> None:
    encoder = section(contents.provenance, "encoder")
    if not encoder:
        return
    recorded = {"compiled": False, **encoder}
    for name in ("kind", "dtype", "compiled"):
        expected, stored = getattr(study.encoder, name), recorded.get(name)
        if stored is not None and stored != expected:
            findings.add("study_encoder", "/@provenance", f"expected encoder {name} {expected!r}, found {stored!r}")
