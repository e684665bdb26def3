"""What a page leaves unexplained, of the terms that a clinician need not know."""

from __future__ import annotations

import re
from html import unescape

from ccassets.pages.glossary import anchor

TERMS = {
    "95 % interval": r"95 %|\bbootstrap|\bintervals?\b",
    "ANEC": r"\bANEC\b",
    "AUC": r"\bAUC\b",
    "AUROC": r"\bAUROC\b",
    "C": r"\bC of\b",
    "ECE": r"\bECE\b|calibration error",
    "Holm": r"\bHolm\b",
    "MCC": r"\bMCC\b",
    "NEC": r"\bNEC\b",
    "Platt scaling": r"\bPlatt\b",
    "average precision": r"\baverage precision\b",
    "balanced accuracy": r"\bbalanced\b",
    "base rate": r"\bbase rate\b",
    "chosen on val": r"†",
    "concept classifier": r"\bbottleneck\b",
    "confident learning": r"\bconfident learning\b",
    "cosine": r"\bcosine\b",
    "kappa": r"\bkappa\b",
    "leakage": r"\bleakage\b|\bleaks?\b",
    "linear probe": r"\bprobe\b",
    "log loss": r"\blog loss\b",
    "log-odds": r"\blog-odds\b",
    "macro-F1": r"\bmacro-F1\b",
    "off-domain phrases": r"\boff-domain\b",
    "p": r"\bp after\b",
    "pointing game": r"\bpointing game\b",
    "precision at 20": r"\bprecision at 20\b",
    "principal components": r"\bprincipal components\b",
    "random directions": r"\brandom directions\b",
    "reliability": r"\breliability\b",
    "span": r"“span”|\brule “",
    "standard deviation": r"\bstandard deviations?\b",
    "temperature": r"\btemperature\b",
    "zero-shot": r"\bzero-shot\b",
}
"""By the name of its explanation, how a term stands on a page."""


def unexplained_terms(page: str) -> set[str]:
    """The terms that stand on a page without an explanation in its list, and links without one."""
    text = visible_text(page)
    listed = {*re.findall(r'<dt id="(term-[\w-]+)">', page)}
    unexplained = {name for name, form in TERMS.items() if re.search(form, text, re.I) and anchor(name) not in listed}
    return unexplained | {*re.findall(r'href="#(term-[\w-]+)"', page)} - listed


def unlinked_headings(page: str) -> set[str]:
    """The headings of tables' columns and rows that hold a term and no link to its explanation."""
    unlinked = set()
    for heading in re.findall(r"<th\b.*?</th>", page, re.S):
        text = visible_text(heading)
        names = [name for name, form in TERMS.items() if re.search(form, text, re.I)]
        if any(f'href="#{anchor(name)}" title="' not in heading for name in names):
            unlinked.add(text)
    return unlinked


def visible_text(page: str) -> str:
    """What a reader reads of a page, without the list of terms."""
    page = re.sub(r"<(style|script)\b.*?</\1>|<dl class=\"terms\">.*?</dl>", " ", page, flags=re.S)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page)))
