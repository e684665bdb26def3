"""Checks of stored digests that need no pass over features: rows, templates, splits, database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import h5py

from ccassets.database.attributes import section
from ccassets.database.feature_digests import (
    TEMPLATE_ARRAYS,
    attribute_digest,
    database_digest,
    rows_digest,
    split_digest,
    template_digest,
)
from ccassets.database.hdf5 import map_dataset
from ccassets.database.layout import WORD_LISTS
from ccassets.database.validation.contents import Contents, TemplateContents
from ccassets.database.validation.finding_collector import FindingCollector, shortened
from ccassets.database.validation.safe_reading import read_or_report


def check_digests(contents: Contents, findings: FindingCollector) -> None:
    """Stored digests of rows, templates, splits and the database, recomputed."""
    recorded = section(contents.provenance, "digests")
    templates = {name: _check_template(template, findings) for name, template in contents.templates.items()}
    has_any = contents.feature_digest is not None or any("digest" in t.attributes for t in contents.templates.values())
    if not recorded and not has_any:
        findings.add("no_digests", "/", "expected digests of what was written; the file records none")
        return
    _check_rows(contents, findings)
    _check_attributes(contents, findings)
    splits = _strings(recorded.get("splits"))
    computed_splits = _split_digests(contents)
    for split, stored in splits.items():
        if computed_splits is not None and computed_splits.get(split) != stored:
            _report_difference(
                findings, "split_digest", f"/@provenance digests.splits.{split}", stored, computed_splits.get(split)
            )
    database = recorded.get("database")
    if isinstance(database, str) and None not in templates.values():
        # Over the recorded digests of splits and templates: each is compared with its content on its own above.
        vocabulary = {name: contents.word_lists[name] for name in WORD_LISTS if name in contents.word_lists}
        computed = _database_digest(splits, {name: str(digest) for name, digest in templates.items()}, vocabulary)
        if computed != database:
            _report_difference(findings, "database_digest", "/@provenance digests.database", database, computed)


def _database_digest(
    splits: Mapping[str, str], templates: Mapping[str, str], vocabulary: Mapping[str, Sequence[str]]
) -> str | None:
    """The database digest; None where names are not UTF-8, since no digest can be computed from them."""
    try:
        return database_digest(splits, templates, vocabulary)
    except UnicodeEncodeError:
        return None


def _strings(value: Any) -> Mapping[str, str]:
    return {name: text for name, text in section(value).items() if isinstance(text, str)}


def _report_difference(findings: FindingCollector, check: str, where: str, stored: Any, computed: str | None) -> None:
    findings.add(
        check,
        where,
        f"expected {shortened(str(stored))}, as it was recorded; the file's content gives {computed or 'none'}",
    )


def _check_rows(contents: Contents, findings: FindingCollector) -> None:
    stored = contents.attributes.get("rows_digest")
    if stored is not None and contents.image_digest is not None and contents.feature_digest is not None:
        computed = rows_digest(contents.image_digest, contents.feature_digest)
        if computed != stored:
            _report_difference(findings, "rows_digest", "/@rows_digest", stored, computed)


def _check_attributes(contents: Contents, findings: FindingCollector) -> None:
    """Check every root attribute that was written with the file; attributes that were added later are left alone."""
    for name, stored in _strings(contents.attributes.get("attribute_digests")).items():
        computed = attribute_digest(contents.stored_attributes[name]) if name in contents.stored_attributes else None
        if computed != stored:
            _report_difference(findings, "attribute_digest", f"/@{name}", stored, computed)


def _check_template(template: TemplateContents, findings: FindingCollector) -> str | None:
    """The stored digest of a template, compared with its content; None where there is none and none can be computed."""
    stored = template.attributes.get("digest")
    if template.texts is None or "text_features" not in template.datasets:
        return None if stored is None else str(stored)
    arrays = {
        name: read_or_report(lambda name=name: _mapped(template.datasets[name]), f"{template.where}/{name}", findings)  # type: ignore[misc]
        for name in TEMPLATE_ARRAYS
        if name in template.datasets
    }
    if any(array is None for array in arrays.values()):
        return None if stored is None else str(stored)
    content = SimpleNamespace(**{name: arrays.get(name) for name in TEMPLATE_ARRAYS}, texts=template.texts)
    computed = template_digest(content)
    if stored is not None and stored != computed:
        _report_difference(findings, "template_digest", f"{template.where}@digest", stored, computed)
    return computed if stored is None else str(stored)


def _mapped(dataset: h5py.Dataset) -> Any:
    """A data set's values: mapped where it is contiguous, so that memory stays flat."""
    mapped = map_dataset(dataset)
    return dataset[...] if mapped is None else mapped


def _split_digests(contents: Contents) -> dict[str, str] | None:
    """The digest of every split, in file order, then of those without rows; None where the rows do not allow it."""
    digests, keys, labels, split = contents.feature_digest, contents.keys, contents.labels, contents.split
    if digests is None or keys is None or labels is None or split is None:
        return None
    lengths = {len(digests), len(keys), len(labels), len(split)}
    lengths |= {len(values) for values in (contents.groups, contents.label_matrix) if values is not None}
    if len(lengths) > 1:
        return None
    names = list(contents.split_counts or {})
    split_digests = {}
    for name in [*names, *(name for name in split.names if name not in names)]:
        rows = split.rows_of(name)
        split_digests[name] = split_digest(
            digests[rows],
            keys=[keys.names[code] for code in keys.codes[rows]],
            labels=labels[rows],
            groups=None if contents.groups is None else [contents.groups.names[c] for c in contents.groups.codes[rows]],
            label_matrix=None if contents.label_matrix is None else contents.label_matrix[rows],
        )
    return split_digests
