"""Asset checks: the validator's groups of checks, run on the files at any time; and the accuracy on val."""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import dagster as dg

from ccassets.analysis.results import available_analyses
from ccassets.database.reader import open_database
from ccassets.database.validation import CHECKS, CheckResults, run_checks
from ccassets.database.validation.registry import checks_of
from ccassets.errors import CcassetsError
from ccassets.extraction.image_extraction import held_entries
from ccassets.extraction.parts import held_rows
from ccassets.extraction.sources import find_source_problems, recorded_card, recorded_manifest
from ccassets.extraction.text_extraction import template_part
from ccassets.findings import Finding, count_errors
from ccassets.orchestration.dagster_internals import check_evaluation
from ccassets.orchestration.names import asset_key
from ccassets.orchestration.partitions import has_several_partitions, split_partitions, splits_of
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


STRUCTURE = CheckGroup("structure", True, "Every data set is there with its shape and dtype; attributes agree.")
COUNTS = CheckGroup("counts", True, "Row numbers, splits and labels are what they should be.")
VALUES = CheckGroup("values", True, "Every value is finite, no row is zero, vectors have unit length.")
TEXTS = CheckGroup("texts", True, "The prompts are those of the word and template lists, and `texts_hash` is theirs.")
PROVENANCE = CheckGroup("provenance", False, "The origin of the features is recorded, and it is consistent.")
STUDY = CheckGroup("study", False, "The file is what the study, as it is loaded now, asks for.")

FindFiles = Callable[[Store, Sequence[str]], Sequence[Path]]
"""The files of an asset that a check reads: those of some splits, where it has splits."""


class FileChecks:
    """A check for every group and asset; the checks of an asset that run together read its files once.

    Args:
        study: The study.
        name: The key after the study's name of what they check, for the name of their step.
        files: Finds the files of each asset.
        groups: The groups of the validator's checks.
        partitions: The splits, where they are partitions of the asset.
        note: The end of their descriptions.
    """

    def __init__(
        self,
        study: Study,
        name: str,
        files: Mapping[dg.AssetKey, FindFiles],
        groups: Sequence[CheckGroup],
        *,
        partitions: dg.PartitionsDefinition[str] | None = None,
        note: str = "",
    ) -> None:
        self.study, self.name, self.files, self.groups, self.partitions = study, name, files, groups, partitions
        with warnings.catch_warnings():
            # Checks by split are a preview in Dagster, which is pinned to one minor version for that reason.
            warnings.simplefilter("ignore", dg.PreviewWarning)
            self.specs = [
                dg.AssetCheckSpec(
                    group.name,
                    asset=key,
                    blocking=group.blocking,
                    description=f"{group.description}{note}",
                    partitions_def=partitions,
                )
                for key in files
                for group in groups
            ]

    def results(
        self, store: Store, splits: Sequence[str], selected: Collection[dg.AssetCheckKey]
    ) -> Iterator[tuple[dg.AssetCheckSpec, dg.AssetCheckResult]]:
        """Run the selected checks on the files of their assets, or of some splits of them."""
        study = self.study if STUDY in self.groups else None
        for key, find_files in self.files.items():
            specs = [spec for spec in self.specs if spec.asset_key == key and spec.key in selected]
            yield from zip(specs, _check_files(specs, partial(find_files, store, splits), study), strict=True)

    def definition(self) -> dg.AssetChecksDefinition:
        """All of them as one step, of which Dagster may select some."""
        step = f"{asset_key(self.study, self.name).to_python_identifier()}__checks"

        @dg.multi_asset_check(name=step, specs=self.specs, can_subset=True)
        def _checks(
            context: dg.AssetCheckExecutionContext, store: StoreResource
        ) -> Iterator[dg.AssetCheckResult | dg.AssetCheckEvaluation | dg.Output[None]]:
            study_store, splits = store.of(self.study), splits_of(context, self.study)
            selected = context.selected_asset_check_keys
            if self.partitions is None or not has_several_partitions(context):
                yield from (result for _, result in self.results(study_store, splits, selected))
                return
            for split in splits:
                for spec, result in self.results(study_store, [split], selected):
                    yield check_evaluation(context, spec, split, result)
            yield from (dg.Output(None, spec.get_python_identifier()) for spec in self.specs if spec.key in selected)

        return _checks


def image_checks(study: Study) -> FileChecks:
    """The checks of the parts that hold a study's image features, by split."""

    def find_files(store: Store, splits: Sequence[str]) -> Sequence[Path]:
        return _parts_of(study, store, splits)

    files, by_split = {asset_key(study, "image_features"): find_files}, split_partitions(study)
    note = " Reads the parts that hold the split."
    return FileChecks(study, "image_features", files, (STRUCTURE, VALUES), partitions=by_split, note=note)


def template_checks(study: Study) -> FileChecks:
    """The checks of a study's template parts."""

    def part_of(template: PromptTemplate) -> FindFiles:
        return lambda store, _: [template_part(template, recorded_card(study, store), store)]

    files = {
        asset_key(study, "template_features", name): part_of(template)
        for name, template in study.vocabulary.templates().items()
    }
    return FileChecks(study, "template_features", files, (TEXTS, VALUES))


def _database_checks(study: Study) -> FileChecks:
    def find_files(store: Store, _: Sequence[str]) -> Sequence[Path]:
        return [store.database]

    groups = (STRUCTURE, COUNTS, VALUES, TEXTS, PROVENANCE, STUDY)
    return FileChecks(study, "feature_database", {asset_key(study, "feature_database"): find_files}, groups)


def study_checks(study: Study) -> list[dg.AssetChecksDefinition]:
    """The checks of a study's image parts (by split), template parts, database and accuracies."""
    templates = template_checks(study)
    accuracies = [name for name in ("zero_shot", "concept_bottleneck") if name in available_analyses(study)]
    return [
        _source_check(study),
        image_checks(study).definition(),
        *([templates.definition()] if templates.files else []),
        _database_checks(study).definition(),
        *(_accuracy_check(study, name) for name in accuracies),
    ]


def _source_check(study: Study) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(study, "images"),
        name="sources",
        description="No image and no group is in two splits, and the label words are the data set's classes.",
    )
    def _check(store: StoreResource) -> dg.AssetCheckResult:
        key = dg.AssetCheckKey(asset_key(study, "images"), "sources")
        try:
            findings = find_source_problems(study, store.of(study))
        except CcassetsError as error:
            return _failure(key, error)
        return _result(key, findings, "Nothing to report in the manifests that were read so far.")

    return _check


def _check_files(
    specs: Sequence[dg.AssetCheckSpec], find_files: Callable[[], Sequence[Path]], study: Study | None
) -> Iterator[dg.AssetCheckResult]:
    """The results of checks of an asset, whose files are read once."""
    checks = {spec.key: checks_of(spec.name) for spec in specs}
    only = frozenset[str]().union(*checks.values())
    try:
        files = find_files() if specs else ()
        results = [_run_checks(file, study, only) for file in files]
    except CcassetsError as error:
        yield from (_failure(key, error) for key in checks)
        return
    nothing = f"Nothing to report in {len(files)} file{'s' if len(files) != 1 else ''}."
    for key, of_group in checks.items():
        findings = [finding for result in results for finding in result.findings if finding.check in of_group]
        yield _result(key, findings, nothing, _numbers(results, with_values=key.name == VALUES.name))


def _accuracy_check(study: Study, analysis: str) -> dg.AssetChecksDefinition:
    key = asset_key(study, analysis)

    @dg.asset_check(
        asset=key,
        name="val_accuracy",
        description=f"On val, accuracy is at most {MOST_LOST:g} below that of the materialization before.",
    )
    def _check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        records = context.instance.fetch_materializations(key, limit=2).records
        accuracies = [accuracy for record in records if (accuracy := _val_accuracy(record)) is not None]
        if len(accuracies) < 2:
            return dg.AssetCheckResult(passed=True, description="There are not yet two accuracies on val to compare.")
        now, before = accuracies
        return dg.AssetCheckResult(
            passed=now >= before - MOST_LOST,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"Accuracy on val was {before:.3f} and is {now:.3f}.",
            metadata={"before": before, "now": now, "change": now - before},
        )

    return _check


def _val_accuracy(record: dg.EventLogRecord) -> float | None:
    assert record.asset_materialization is not None
    value = record.asset_materialization.metadata.get("val_accuracy")
    return value.value if isinstance(value, dg.FloatMetadataValue) else None


def _parts_of(study: Study, store: Store, splits: Iterable[str]) -> Sequence[Path]:
    """The image parts that hold the rows of the given splits; `StorageError` when rows are in none."""
    index = held_rows(store, recorded_card(study, store).identity)
    sources: set[Path] = set()
    for split in splits:
        entries = held_entries(recorded_manifest(study, split, store), index)
        sources.update(index.sources[number] for number in set(index.source[entries].tolist()))
    return sorted(sources)


def _run_checks(file: Path, study: Study | None, only: Collection[str]) -> CheckResults:
    with open_database(file) as database:
        return run_checks(database, study, only=only)


def _numbers(results: Sequence[CheckResults], *, with_values: bool) -> dict[str, float]:
    """What the files hold, for the plots of a check; those of its features where the check read them."""
    texts = [template.texts for result in results for template in result.contents.templates.values()]
    numbers: dict[str, float] = {
        "rows": sum(result.contents.rows for result in results),
        "prompts": sum(map(len, filter(None, texts))),
    }
    if with_values:
        numbers["not_finite"] = sum(result.values.not_finite for result in results)
        numbers["norm_deviation"] = max((result.values.norm_deviation for result in results), default=0.0)
    return numbers


def _result(
    check: dg.AssetCheckKey,
    findings: Sequence[Finding],
    nothing: str,
    numbers: Mapping[str, float] = MappingProxyType({}),
) -> dg.AssetCheckResult:
    errors = count_errors(findings)
    warns_only = findings and not errors
    return dg.AssetCheckResult(
        asset_key=check.asset_key,
        check_name=check.name,
        passed=not findings,
        severity=dg.AssetCheckSeverity.WARN if warns_only else dg.AssetCheckSeverity.ERROR,
        description=describe_findings(findings) if findings else nothing,
        metadata={
            "errors": errors,
            "warnings": len(findings) - errors,
            **numbers,
            "findings": dg.MetadataValue.json([finding.as_dict() for finding in findings]),
        },
    )


def _failure(check: dg.AssetCheckKey, error: CcassetsError) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=check.asset_key,
        check_name=check.name,
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR,
        description=str(error),
        metadata={"errors": 1, "warnings": 0},
    )


def describe_findings(findings: Sequence[Finding]) -> str:
    """The findings and what to do about them, check by check."""
    lines = [f"{finding.check}: {finding.message} ({finding.where})" for finding in findings]
    advice = dict.fromkeys(CHECKS[finding.check].advice for finding in findings if finding.check in CHECKS)
    return "\n".join([*lines, *advice])
