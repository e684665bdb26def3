"""Checks of a file against a study: what it was meant to hold, compared with what it holds."""

from __future__ import annotations

from collections.abc import Sequence

from ccassets.database.layout import IMAGE_TOKEN_FEATURES
from ccassets.database.validation.contents import Contents
from ccassets.database.validation.finding_collector import Report, listed, rows_text
from ccassets.database.validation.row_rules import split_rows
from ccassets.database.validation.text_rules import differing, stale_templates
from ccassets.study.schema import Study

_ALWAYS_TOKENS = {"conceptclip", "phantom"}


def check_study(contents: Contents, study: Study, report: Report) -> None:
    """Vocabulary, splits, tokens, limit and encoder of a database against a study; parts have nothing to compare."""
    if contents.kind not in {"database", "text-only"}:
        return
    _check_vocabulary(contents, study, report)
    if contents.kind == "text-only":
        report.add("study_splits", "/", "every split of the study was expected; a text-only file has no images")
    else:
        _check_splits(contents, study, report)
        _check_tokens(contents, study, report)
        _check_limit(contents, study, report)
        _check_encoder(contents, study, report)


def _check_vocabulary(contents: Contents, study: Study, report: Report) -> None:
    vocabulary = study.vocabulary
    lists: dict[str, Sequence[str]] = {
        "label_texts": vocabulary.labels.words,
        "prompt_temp_for_labels": vocabulary.labels.templates,
        "concept_texts": vocabulary.concepts.texts,
        "prompt_temp_for_concepts": vocabulary.concepts.templates,
    }
    for name, expected in lists.items():
        different = differing(expected, contents.word_lists.get(name, expected))
        if different:
            report.add("study_vocabulary", f"/@{name}", f"{name}: the study's were expected; {different}")
    wanted = vocabulary.templates()
    for template_id, template in wanted.items():
        stored = contents.templates.get(template_id)
        if stored is None:
            where = f"/templates/{template_id}"
            report.add("study_vocabulary", where, f"template {template_id} of the study was expected; there is none")
        elif stored.texts is not None:
            different = differing(template.prompts, stored.texts)
            if different:
                report.add(
                    "study_vocabulary", stored.where, f"template {template_id} differs from the study's: {different}"
                )
    # What is left over from a longer list has its own warning, and is not taken over into the study's database.
    more = [
        template_id for template_id in contents.templates if template_id not in {*wanted, *stale_templates(contents)}
    ]
    if more:
        report.add(
            "study_vocabulary",
            "/templates",
            f"the study's {len(wanted)} templates were expected; {listed(more)} are not of it",
        )


def _check_splits(contents: Contents, study: Study, report: Report) -> None:
    if contents.split is None:
        return
    found = split_rows(contents)
    known = {**(contents.split_counts or {}), **found}
    missing = [repr(split) for split in study.splits if split not in known]
    if missing:
        report.add(
            "study_splits", "/split", f"every split of the study was expected; there are no rows of {listed(missing)}"
        )
    foreign = [split for split in found if split not in study.splits]
    if foreign:
        text = listed([f"{split!r} ({rows_text(contents.split.rows_of(split))})" for split in foreign])
        report.add(
            "foreign_split",
            "/split",
            f"only the study's splits {listed([repr(s) for s in study.splits])} were expected; "
            f"found rows of {text} too. The rows of the study's own splits are not affected.",
        )
    order = [split for split in found if split in study.splits]
    expected = [split for split in study.splits if split in found]
    if order != expected:
        report.add(
            "study_splits",
            "/split",
            f"the study's order, {listed([repr(s) for s in expected], 6)}, was expected; "
            f"found {listed([repr(s) for s in order], 6)}",
        )


def _check_tokens(contents: Contents, study: Study, report: Report) -> None:
    stored = IMAGE_TOKEN_FEATURES in contents.datasets
    if stored and not study.encoder.tokens:
        report.add(
            "study_tokens", f"/{IMAGE_TOKEN_FEATURES}", "no token features were expected (tokens: false); found some"
        )
    if not stored and study.encoder.tokens and study.encoder.kind in _ALWAYS_TOKENS:
        report.add(
            "study_tokens", f"/{IMAGE_TOKEN_FEATURES}", "token features were expected (tokens: true); there are none"
        )


def _check_limit(contents: Contents, study: Study, report: Report) -> None:
    expected, found = study.extraction.limit, contents.attributes.get("limit")
    if expected != found:
        report.add(
            "study_limit", "/@limit", f"limit {expected or 'none'} of the study was expected; found {found or 'none'}"
        )


def _check_encoder(contents: Contents, study: Study, report: Report) -> None:
    encoder = (contents.provenance or {}).get("encoder")
    if not isinstance(encoder, dict):
        return
    recorded = {"compiled": False, **encoder}
    for name in ("kind", "dtype", "compiled"):
        expected, found = getattr(study.encoder, name), recorded.get(name)
        if found is not None and found != expected:
            report.add("study_encoder", "/@provenance", f"encoder {name} {expected!r} was expected; found {found!r}")
