"""The validation report of a study: its findings as JSON for programs and as one page for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccassets.analysis.results import class_counts, unmeasured_classes
from ccassets.analysis.samples import class_names, is_labelled
from ccassets.database.reader import open_database
from ccassets.database.summary import summarize
from ccassets.database.validation import validate_database
from ccassets.files import write_text
from ccassets.findings import Finding, has_errors
from ccassets.pages.renderer import markdown_cell, render
from ccassets.study.schema import Study
from ccassets.study.storage import Store


@dataclass(frozen=True)
class ValidationReport:
    """The findings and the path of the page; `digest` changes when the findings or the database do."""

    findings: Sequence[Finding]
    page: Path
    digest: str

    @property
    def ok(self) -> bool:
        return not has_errors(self.findings)

    @property
    def markdown(self) -> str:
        """The findings as a Markdown table."""
        if not self.findings:
            return "Nothing to report: every check passed."
        rows = [
            f"| {f.severity} | {f.check} | {markdown_cell(f.message)} | {markdown_cell(f.where)} |"
            for f in self.findings
        ]
        return "\n".join(["| severity | check | message | where |", "|---|---|---|---|", *rows])


def findings_as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Convert findings to `{"ok": bool, "findings": [{"check", "severity", "message", "where"}]}`.

    `ok` is false when there is an error.
    """
    return {"ok": not has_errors(findings), "findings": [finding.as_dict() for finding in findings]}


def write_validation_report(study: Study, store: Store) -> ValidationReport:
    """Validate a study's database and write `validation.json` and `validation.html` beside it."""
    findings = validate_database(store.database, study=study)
    with open_database(store.database) as database:
        facts = summarize(database)
        counts = class_counts(database) if is_labelled(database) else {}
        facts["unmeasured"] = unmeasured_classes(class_names(database), counts)
        facts["texts"] = {name: template.texts for name, template in database.templates.items()}
    page = store.reports / "validation.html"
    content = findings_as_json(findings)
    write_text(store.reports / "validation.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text(page, render_page(study, findings, facts))
    digest = hashlib.sha256(json.dumps([content, facts["digest"]], sort_keys=True).encode()).hexdigest()
    return ValidationReport(findings, page, digest)


def render_page(study: Study, findings: Sequence[Finding], facts: dict[str, Any]) -> str:
    """Render the findings and facts of a database as one self-contained HTML page."""
    return render("validation.html", study=study, findings=findings, ok=not has_errors(findings), facts=facts)
