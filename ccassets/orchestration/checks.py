"""Asset checks: the validator's groups of checks, run on the files by themselves, at any time; and accuracies."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from ccassets.analysis.results import available_analyses
from ccassets.database.validation import CHECKS, validate_database
from ccassets.errors import CcassetsError
from ccassets.extraction.image_extraction import held_entries
from ccassets.extraction.parts import held_rows
from ccassets.extraction.sources import find_source_problems, recorded_card, recorded_manifest
from ccassets.extraction.text_extraction import template_part
from ccassets.findings import Finding, has_errors
from ccassets.orchestration.names import asset_key
from ccassets.orchestration.partitions import split_partitions, splits_of
from ccassets.orchestration.resources import StoreResource
from ccassets.study.schema import PromptTemplate, Study
from ccassets.study.storage import Store

MOST_LOST = 0.02
"""An accuracy on val that falls by more than this is worth a warning."""


@dataclass(frozen=True)
class CheckGroup:
    """An asset check: the validator's checks of one group. A blocking one stops what is downstream."""

    name: str
    blocking: bool
    description: str

    @property
    def checks(self) -> frozenset[str]:
        return frozenset(check.name for check in CHECKS.values() if check.group == self.name)


STRUCTURE = CheckGroup("structure", True, "Every data set is there with its shape and dtype; attributes agree.")
COUNTS = CheckGroup("counts", True, "Row numbers, splits and labels are what they should be.")
VALUES = CheckGroup("values", True, "Every value is finite, no row is zero, vectors have unit length.")
TEXTS = CheckGroup("texts", True, "The prompts are those of the word and template lists, and `texts_hash` is theirs.")
PROVENANCE = CheckGroup("provenance", False, "Where the features came from is recorded, and nothing about it is odd.")
STUDY = CheckGroup("study", False, "The file is what the study, as it is loaded now, asks for.")


def study_checks(study: Study) -> list[dg.AssetChecksDefinition]:
    """The checks of a study's image parts (by split), template parts, database and accuracies."""
    return [
        _sources_check(study),
        *(_image_check(study, group) for group in (STRUCTURE, VALUES)),
        *(
            _template_check(study, template, group)
            for template in study.vocabulary.templates().values()
            for group in (TEXTS, VALUES)
        ),
        *(_database_check(study, group) for group in (STRUCTURE, COUNTS, VALUES, TEXTS, PROVENANCE, STUDY)),
        *(
            _accuracy_check(study, name)
            for name in ("zero_shot", "concept_bottleneck")
            if name in available_analyses(study)
        ),
    ]


def _sources_check(study: Study) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(study, "images"),
        name="sources",
        description="No image and no group is in two splits, and the label words are the data set's classes.",
    )
    def _check(store: StoreResource) -> dg.AssetCheckResult:
        try:
            findings = find_source_problems(study, store.of(study))
        except CcassetsError as error:
            return _failed(error)
        return _found(findings, "Nothing to report in the manifests that were read so far.")

    return _check


def _image_check(study: Study, group: CheckGroup) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(study, "image_features"),
        name=group.name,
        blocking=group.blocking,
        partitions_def=split_partitions(study),
        description=f"{group.description} Reads the parts that hold the split.",
    )
    def _check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        try:
            files = _parts_of(study, store.of(study), splits_of(context, study))
        except CcassetsError as error:
            return _failed(error)
        return _result(group, files)

    return _check


def _template_check(study: Study, template: PromptTemplate, group: CheckGroup) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(study, "template_features", template.template_id),
        name=group.name,
        blocking=group.blocking,
        description=group.description,
    )
    def _check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        files = store.of(study)
        try:
            part = template_part(template, recorded_card(study, files), files)
        except CcassetsError as error:
            return _failed(error)
        return _result(group, [part])

    return _check


def _database_check(study: Study, group: CheckGroup) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(study, "feature_database"),
        name=group.name,
        blocking=group.blocking,
        description=group.description,
    )
    def _check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        return _result(group, [store.of(study).database], study)

    return _check


def _accuracy_check(study: Study, analysis: str) -> dg.AssetChecksDefinition:
    key = asset_key(study, analysis)

    @dg.asset_check(
        asset=key,
        name="val_accuracy",
        description=f"On val, accuracy is at most {MOST_LOST:g} below that of the materialization before.",
    )
    def _check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        values = [_val_accuracy(record) for record in context.instance.fetch_materializations(key, limit=2).records]
        known = [value for value in values if value is not None]
        if len(known) < 2:
            return dg.AssetCheckResult(passed=True, description="There are no two accuracies on val to compare.")
        now, before = known
        return dg.AssetCheckResult(
            passed=now >= before - MOST_LOST,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"Accuracy on val was {before:.3f} and is {now:.3f}.",
            metadata={"before": before, "now": now, "change": now - before},
        )

    return _check


def _val_accuracy(record: dg.EventLogRecord) -> float | None:
    assert record.asset_materialization is not None
    found = record.asset_materialization.metadata.get("val_accuracy")
    return found.value if isinstance(found, dg.FloatMetadataValue) else None


def _parts_of(study: Study, store: Store, splits: Iterable[str]) -> Sequence[Path]:
    """The image parts that hold the rows of the given splits; `StorageError` when rows are in none."""
    index = held_rows(store, recorded_card(study, store).identity)
    sources: set[Path] = set()
    for split in splits:
        entries = held_entries(recorded_manifest(study, split, store), index)
        sources.update(index.sources[number] for number in set(index.source[entries].tolist()))
    return sorted(sources)


def _result(group: CheckGroup, files: Sequence[Path], study: Study | None = None) -> dg.AssetCheckResult:
    findings: list[Finding] = []
    try:
        for file in files:
            findings += validate_database(file, study=study, only=group.checks)
    except CcassetsError as error:
        return _failed(error)
    return _found(findings, f"Nothing to report in {len(files)} file{'s' if len(files) != 1 else ''}.")


def _found(findings: Sequence[Finding], nothing: str) -> dg.AssetCheckResult:
    failed = has_errors(findings)
    return dg.AssetCheckResult(
        passed=not findings,
        severity=dg.AssetCheckSeverity.ERROR if failed else dg.AssetCheckSeverity.WARN,
        description=_description(findings) if findings else nothing,
        metadata={"findings": dg.MetadataValue.json([finding.as_dict() for finding in findings])},
    )


def _failed(error: CcassetsError) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.ERROR, description=str(error))


def _description(findings: Sequence[Finding]) -> str:
    """What was found and what to do about it, check by check."""
    lines = [f"{finding.check}: {finding.message} ({finding.where})" for finding in findings]
    advice = dict.fromkeys(CHECKS[finding.check].advice for finding in findings if finding.check in CHECKS)
    return "\n".join([*lines, *advice])
