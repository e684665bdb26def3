"""A database as a notebook shows it: what is in it and what is wrong with it, in one small table."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ccassets.database.reader import READ_ERRORS, Database
from ccassets.database.summary import summarize
from ccassets.database.validation import CHECKS, examine
from ccassets.database.validation.legacy_traces import TRACE_CHECKS
from ccassets.database.validation.value_rules import BULK_CHECKS
from ccassets.errors import DatabaseError

_QUICK = frozenset(CHECKS) - BULK_CHECKS - TRACE_CHECKS
"""The checks that read no features."""

_SPLITS_SHOWN = 12


def as_html(database: Database) -> str:
    """A table with sizes, splits, templates and findings; every text of the file is escaped.

    Features are not read, so that it appears at once: `validate_database` has the last word. A file that is closed
    or cannot be read gives a sentence.
    """
    name = escape(database.path.name)
    if not database.file:
        return f"<p><code>{name}</code> is closed.</p>"
    try:
        rows = list(_rows(database))
    except (DatabaseError, *READ_ERRORS) as error:
        return f"<p><code>{name}</code> cannot be read: {escape(str(error))}</p>"
    lines = [
        f'<tr><th style="text-align:left">{head}</th><td style="text-align:left">{c}</td></tr>' for head, c in rows
    ]
    return f"<table><caption><code>{name}</code></caption>{''.join(lines)}</table>"


def _rows(database: Database) -> Iterator[tuple[str, str]]:
    facts = summarize(database)
    patches = f", {facts['token_count']} patches each" if facts["token_count"] else ", no patches"
    yield "images", f"{facts['rows']:,} of D = {facts['dim']}{patches}"
    splits = [f"{escape(name)} {rows:,}" for name, rows in facts["splits"].items()]
    rest = len(splits) - _SPLITS_SHOWN
    yield "splits", ", ".join(splits[:_SPLITS_SHOWN]) + (f" and {rest} more" if rest > 0 else "") or "none"
    templates = [
        f"<code>{escape(name)}</code>: {template['prompts']} prompts, such as “{escape(str(template['first']))}”"
        for name, template in facts["templates"].items()
    ]
    yield "templates", "<br>".join(templates) or "none"
    origin = " ".join(
        str(word) for word in (facts["origin"], facts["encoder"]["kind"], facts["encoder"]["identity"]) if word
    )
    yield "origin", escape(origin or "not recorded")
    findings = examine(database, only=_QUICK).findings
    found = [escape(f"{finding.severity} {finding.check}: {finding.message}") for finding in findings]
    yield "findings", "<br>".join(found) or "none (features were not read)"
