"""The facts of a file as plain values, for `ccassets info`, pages and JSON, and as the table a notebook shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from ccassets.database.attributes import json_array, section
from ccassets.database.hdf5 import READ_ERRORS
from ccassets.errors import DatabaseError

if TYPE_CHECKING:
    from ccassets.database.reader import Database

_SPLITS_SHOWN = 12


def summarize(database: Database) -> dict[str, Any]:
    """Sizes, splits, templates, vocabulary and origin of a file, without its rows.

    Facts that the file does not record are None or empty. Rows per split are those that `split_counts` states where
    they add up to N; only elsewhere is `/split` counted.
    """
    provenance = section(database.provenance)
    encoder = section(provenance, "encoder")
    return {
        "file": database.path.name,
        "profile": database.profile,
        "bytes": database.file_bytes,
        "rows": len(database),
        "dim": database.dim,
        "token_count": database.token_count,
        "splits": _splits(database),
        "templates": {
            name: {"prompts": len(template.texts), "first": template.texts[0] if template.texts else None}
            for name, template in database.templates.items()
        },
        "labels": json_array(database.attributes.get("label_texts")),
        "concepts": json_array(database.attributes.get("concept_texts")),
        "created_at": database.attributes.get("created_at"),
        "limit": database.attributes.get("limit"),
        "logit_multiplier": database.logit_multiplier,
        "concept_logit_multiplier": database.concept_logit_multiplier,
        "origin": provenance.get("origin"),
        "digest": section(provenance, "digests").get("database"),
        "encoder": {
            **{name: encoder.get(name) for name in ("kind", "identity", "weights_digest", "dtype")},
            "weights": section(encoder, "recorded").get("weights"),
        },
        "dataset": dict(section(provenance, "dataset")),
        "libraries": dict(section(provenance, "libraries")),
    }


def _splits(database: Database) -> dict[str, int]:
    """Rows per split; none in a file of templates alone."""
    stated = dict(section(database.attributes, "split_counts"))
    if all(type(rows) is int and rows >= 0 for rows in stated.values()) and sum(stated.values()) == len(database):
        return stated
    try:
        return {name: rows.stop - rows.start for name, rows in database.splits.items()}
    except DatabaseError:
        return dict(Counter(database.split))


# --- as HTML ------------------------------------------------------------------------------------------


def summary_html(database: Database) -> str:
    """A table of sizes, splits, templates and origin; every text of the file is escaped.

    A file that is closed or cannot be read gives a sentence.
    """
    name = escape(database.path.name)
    if not database.file:
        return f"<p><code>{name}</code> is closed.</p>"
    try:
        lines = list(_lines(summarize(database)))
    except (DatabaseError, *READ_ERRORS) as error:
        return f"<p><code>{name}</code> cannot be read: {escape(str(error))}</p>"
    rows = [
        f'<tr><th style="text-align:left">{head}</th><td style="text-align:left">{cell}</td></tr>'
        for head, cell in lines
    ]
    return f"<table><caption><code>{name}</code></caption>{''.join(rows)}</table>"


def _lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Heading and content of every line, escaped."""
    patches = f", {facts['token_count']} patches each" if facts["token_count"] else ", no patches"
    yield "images", f"{facts['rows']:,} of D = {facts['dim']}{patches}"
    splits = [f"{escape(name)} {rows:,}" for name, rows in facts["splits"].items()]
    hidden = len(splits) - _SPLITS_SHOWN
    yield "splits", ", ".join(splits[:_SPLITS_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "") or "none"
    templates = [
        f"<code>{escape(name)}</code>: {template['prompts']} prompts, such as “{escape(str(template['first']))}”"
        for name, template in facts["templates"].items()
    ]
    yield "templates", "<br>".join(templates) or "none"
    encoder = facts["encoder"]
    origin = " ".join(str(word) for word in (facts["origin"], encoder["kind"], encoder["identity"]) if word)
    yield "origin", escape(origin or "not recorded")
