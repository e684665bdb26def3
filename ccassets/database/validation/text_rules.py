"""Checks of templates: prompts against their hash and the word lists, masks and spans of tokens."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import section
from ccassets.database.hdf5 import Array
from ccassets.database.validation.contents import Contents, TemplateContents
from ccassets.database.validation.finding_collector import FindingCollector, count, listed, rows_text, shortened
from ccassets.database.validation.safe_reading import read_or_report
from ccassets.study.prompt_hash import texts_hash

Bools = npt.NDArray[np.bool_]

LISTS: Mapping[str, tuple[str, str]] = {
    "concept": ("prompt_temp_for_concepts", "concept_texts"),
    "label": ("prompt_temp_for_labels", "label_texts"),
}
"""Of each kind of numbered template, the attributes with its template strings and its words."""

_STRAIGHT = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")
_COMPATIBLE = re.compile("[\ufb00-\ufb06\u0132\u0133\uff01-\uff5e]")
"""Latin ligatures and full-width characters."""

_NUMBERED = re.compile(r"(concept|label)_prompts_t(\d{2,})")


def check_texts(contents: Contents, findings: FindingCollector) -> None:
    """Hashes, prompts, the set of templates, masks and spans."""
    for template in contents.templates.values():
        _check_hash(template, findings)
        _check_tokens(template, findings)
        _check_cleaning(template, contents, findings)
    for kind in LISTS:
        _check_numbered(kind, contents, findings)
    _check_concepts(contents, findings)


def _check_hash(template: TemplateContents, findings: FindingCollector) -> None:
    if template.texts is None:
        return
    stored = template.attributes.get("texts_hash")
    expected = hash_texts(template.texts)
    if stored != expected:
        text = "no hash" if stored is None else shortened(str(stored))
        findings.add(
            "texts_hash",
            f"{template.where}@texts_hash",
            f"expected the hash of the stored prompts, {expected}, found {text}: "
            "the prompts are not the ones that were encoded",
        )


def hash_texts(texts: Sequence[str]) -> str:
    """`texts_hash`, of strings that may not be UTF-8 too."""
    try:
        return texts_hash(texts)
    except UnicodeEncodeError:
        return texts_hash([text.encode("utf-8", "surrogateescape").decode("latin-1") for text in texts])


def _numbered_templates(contents: Contents, kind: str) -> dict[str, int]:
    """The numbered templates of a kind, each with its number."""
    return {
        template_id: int(match[2])
        for template_id in contents.templates
        if (match := _NUMBERED.fullmatch(template_id)) and match[1] == kind
    }


def stale_templates(contents: Contents) -> set[str]:
    """Numbered templates beyond the stored list of their kind."""
    return {
        template_id
        for kind, (templates_name, _) in LISTS.items()
        if templates_name in contents.word_lists
        for template_id, number in _numbered_templates(contents, kind).items()
        if not 1 <= number <= len(contents.word_lists[templates_name])
    }


def _check_numbered(kind: str, contents: Contents, findings: FindingCollector) -> None:
    """Numbered templates of one kind against the stored lists."""
    numbered = _numbered_templates(contents, kind)
    templates_name, words_name = LISTS[kind]
    templates, words = (contents.word_lists.get(name) for name in LISTS[kind])
    if templates is None or words is None:
        absent = [name for name in LISTS[kind] if name not in contents.attributes]
        if numbered and absent and contents.kind == "database":
            findings.add(
                "vocabulary" if contents.published else "vocabulary_unknown",
                "/",
                f"expected {' and '.join(absent)} beside {count(len(numbered), f'{kind} template')}",
            )
        return
    stale = stale_templates(contents)
    for template_id, number in numbered.items():
        template = contents.templates[template_id]
        if template_id in stale:
            findings.add(
                "stale_template",
                template.where,
                f"expected {kind} templates 1 to {len(templates)} of {templates_name}; {template_id} is beyond "
                "them: left over from a longer list",
            )
        elif template.texts is not None:
            prompts = [templates[number - 1].replace("{}", word) for word in words]
            _compare_prompts(template, prompts, f"{templates_name}[{number - 1}] and {words_name}", findings)
    missing = sorted(set(range(1, len(templates) + 1)) - set(numbered.values())) if words else []
    if contents.kind == "text-only":
        # Nobody reads the scores of such a file: its prompts can be used under any id.
        stored = {tuple(template.texts) for template in contents.templates.values() if template.texts is not None}
        missing = [n for n in missing if tuple(templates[n - 1].replace("{}", word) for word in words) not in stored]
    if missing and contents.kind != "template-part":
        names = listed([f"{kind}_prompts_t{number:02d}" for number in missing])
        findings.add(
            "missing_template",
            "/templates",
            f"expected {count(len(templates), f'{kind} template')} by {templates_name}; missing: {names}",
        )


def _compare_prompts(
    template: TemplateContents, expected: Sequence[str], source: str, findings: FindingCollector
) -> None:
    different = difference_text(expected, template.texts or ())
    if different:
        findings.add(
            "texts",
            f"{template.where}/texts",
            f"the prompts are not those that {source} give: {different}",
        )


def difference_text(expected: Sequence[str], actual: Sequence[str]) -> str:
    """How two lists of texts differ, in words; empty where they do not."""
    if list(expected) == list(actual):
        return ""
    if len(expected) != len(actual):
        return f"expected {len(expected)} texts, found {len(actual)}"
    rows = [row for row, pair in enumerate(zip(expected, actual, strict=True)) if pair[0] != pair[1]]
    row = rows[0]
    more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
    return f"expected {shortened(expected[row])} at {row}, found {shortened(actual[row])}{more}"


def _check_concepts(contents: Contents, findings: FindingCollector) -> None:
    concepts, words = contents.attributes.get("concepts"), contents.word_lists.get("concept_texts")
    if concepts is None or words is None:
        return
    texts = [text for concept in concepts for text in (concept["word"], *(concept.get("synonyms") or ()))]
    different = difference_text(words, texts)
    if different:
        findings.add("vocabulary", "/@concepts", f"the words are not those of concept_texts: {different}")


# --- tokens -------------------------------------------------------------------------------------------


def _check_tokens(template: TemplateContents, findings: FindingCollector) -> None:
    arrays = {
        name: read_or_report(lambda name=name: template.datasets[name][...], f"{template.where}/{name}", findings)  # type: ignore[misc]
        for name in ("input_ids", "attention_mask", "subject_span")
        if name in template.datasets
    }
    mask, spans = arrays.get("attention_mask"), arrays.get("subject_span")
    _check_distinct(template, arrays.get("input_ids"), findings)
    if mask is not None:
        wrong = np.flatnonzero((mask > 1).any(axis=1) | ~(mask == 1).any(axis=1))
        if len(wrong):
            findings.add(
                "attention_mask",
                f"{template.where}/attention_mask {rows_text(wrong)}",
                f"expected 1 for tokens and 0 for padding, and at least one token; {count(len(wrong), 'row')} differ",
            )
    if spans is not None and (mask is None or len(mask) == len(spans)):
        wrong = np.flatnonzero(~_spans_inside(spans, mask))
        if len(wrong):
            first = wrong[0]
            findings.add(
                "spans",
                f"{template.where}/subject_span {rows_text(wrong)}",
                f"expected a range of the prompt's tokens (or 0, 0), found {spans[first].tolist()} at row {first}",
            )


def _check_distinct(template: TemplateContents, ids: Array | None, findings: FindingCollector) -> None:
    """Different prompts with the same tokens: the model cannot tell them apart."""
    if ids is None or template.texts is None or len(ids) != len(template.texts):
        return
    if message := describe_alike_prompts(ids, template.texts):
        findings.add("prompts_alike", f"{template.where}/input_ids", message)


def describe_alike_prompts(ids: Array, texts: Sequence[str]) -> str | None:
    """A sentence on different prompts with the same tokens; None if there are none."""
    by_tokens: dict[bytes, set[str]] = {}
    for row, text in zip(ids, texts, strict=True):
        by_tokens.setdefault(row.tobytes(), set()).add(text)
    alike = [sorted(same) for same in by_tokens.values() if len(same) > 1]
    if not alike:
        return None
    more = f" (and {len(alike) - 1} more such groups)" if len(alike) > 1 else ""
    return (
        "expected different tokens for different prompts; the model reads "
        f"{listed([shortened(text) for text in alike[0]])} as one{more}"
    )


def _check_cleaning(template: TemplateContents, contents: Contents, findings: FindingCollector) -> None:
    """Prompts of ConceptCLIP with characters that its authors' code replaces before it tokenizes them."""
    if section(contents.provenance, "encoder").get("kind") != "conceptclip":
        return
    changed = [text for text in template.texts or () if cleaned_text(text) != text]
    if changed:
        findings.add(
            "prompt_cleaning",
            f"{template.where}/texts",
            "expected plain characters, as the code of ConceptCLIP's authors makes them; "
            f"it would change {count(len(changed), 'prompt')}, such as {shortened(changed[0])} "
            f"to {shortened(cleaned_text(changed[0]))}",
        )


def cleaned_text(text: str) -> str:
    """The text as the tokenizer of open_clip cleans it: HTML entities, typographic quotes, ligatures, full width.

    Only what changes tokens (ftfy's `fix_text` with its defaults, then `html.unescape` twice); spaces do not.
    """
    plain = html.unescape(html.unescape(text)).translate(_STRAIGHT)
    return _COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), plain)


def _spans_inside(spans: Array, mask: Array | None) -> Bools:
    """Which half-open ranges lie inside the mask; (0, 0) always does: it stands for no word, or a word cut off."""
    start, stop = spans[:, 0].astype(np.int64), spans[:, 1].astype(np.int64)
    none: Bools = (start == 0) & (stop == 0)
    ordered: Bools = none | ((start >= 0) & (start < stop))
    if mask is None:
        return ordered
    width = mask.shape[1]
    tokens_before = np.concatenate([np.zeros((len(mask), 1), np.int64), np.cumsum(mask == 1, axis=1)], axis=1)
    rows = np.arange(len(mask))
    inside = tokens_before[rows, stop.clip(0, width)] - tokens_before[rows, start.clip(0, width)] == stop - start
    fits: Bools = none | (ordered & (stop <= width) & inside)
    return fits
