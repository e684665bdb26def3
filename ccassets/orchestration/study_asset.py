"""What every asset of a study has: a specification, a step, and versions by which Dagster sees what is stale."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import BaseModel

from ccassets.analysis import AnalysisResult
from ccassets.encoders.encoder_contract import EXTRACTION_VERSION
from ccassets.orchestration.blocking import require_passed_checks
from ccassets.orchestration.checks import FileChecks
from ccassets.orchestration.conditions import rebuild_stale
from ccassets.orchestration.dagster_internals import (
    check_evaluation,
    partition_materialization,
    recorded_result,
)
from ccassets.orchestration.names import FRESH, asset_key
from ccassets.orchestration.partitions import has_several_partitions, splits_of
from ccassets.orchestration.steps import errors_as_failures, make_each, retry_wait
from ccassets.study.schema import Study
from ccassets.study.storage import Store

ANALYSIS_VERSION = 3
"""Raised on purpose when an analysis gives other results for the same database; part of its assets' code versions."""

Result = dg.MaterializeResult[None]
Materialization = Result | dg.AssetMaterialization
SplitStep = Callable[[Sequence[str]], Result]
Body = Callable[..., Result | Iterator[Result] | SplitStep]


class ExtractionRun(dg.Config):
    """The options of one run: `fresh` computes everything again, whatever parts and the old database hold."""

    fresh: bool = False

    def is_fresh(self, context: dg.AssetExecutionContext) -> bool:
        """Whether this option or a tag of the run asks to compute everything again."""
        return self.fresh or FRESH in context.run.tags


def asset_spec(
    study: Study,
    name: str,
    *,
    description: str,
    kinds: Collection[str],
    version: Sequence[object] = (),
    deps: Sequence[dg.AssetDep | str] = (),
    condition: Callable[[Study], dg.AutomationCondition[dg.AssetKey]] = rebuild_stale,
) -> dg.AssetSpec:
    """Make the specification of an asset of a study, with its group and key.

    Args:
        study: The study.
        name: Its key after the study's name; several parts are joined with `/`.
        description: What the asset is, as the UI shows it.
        kinds: The kinds that the UI shows on the asset.
        version: What changes the asset's code version, besides our own extraction code.
        deps: The assets of the study that it is made of, by name.
        condition: Says when it asks to be materialized, once the study's sensor is turned on.

    Returns:
        The specification.
    """
    return dg.AssetSpec(
        key=asset_key(study, name),
        deps=[dep if isinstance(dep, dg.AssetDep) else asset_key(study, dep) for dep in deps],
        group_name=study.name,
        automation_condition=condition(study),
        kinds=set(kinds),
        code_version=code_version(*version),
        description=description,
    )


def study_asset(
    study: Study,
    name: str,
    *,
    specs: Sequence[dg.AssetSpec] = (),
    partitions: dg.PartitionsDefinition[str] | None = None,
    pool: str | None = None,
    checks: FileChecks | None = None,
    **facts: Any,
) -> Callable[[Body], dg.AssetsDefinition]:
    """Make a function the step of an asset of a study; our errors become the step's failure.

    The step is refused while a blocking check of what it reads failed, in whatever run that was.

    Args:
        study: The study.
        name: The key of the asset after the study's name; several parts are joined with `/`.
        specs: The assets that the step makes, where they are several; each can be materialized without the others.
        partitions: The splits, where they are partitions of the asset.
        pool: The pool whose slots limit how many of its steps run at once.
        checks: The checks of its files. Dagster skips them when the step fails; the step then records the checks of
            what it had made.
        facts: What `asset_spec` takes, of the one asset.

    Returns:
        A decorator for a function with Dagster's context, config and resources as parameters, which gives one result,
        yields several, or gives a function of splits that makes the result of these.
    """
    specs = specs or [asset_spec(study, name, **facts)]

    def decorate(body: Body) -> dg.AssetsDefinition:
        @functools.wraps(body)
        def materialize(*args: Any, **kwargs: Any) -> Iterator[Materialization | dg.AssetCheckEvaluation]:
            with errors_as_failures():
                context = dg.AssetExecutionContext.get()
                selected = [spec for spec in specs if spec.key in context.selected_asset_keys]
                read = {dep.asset_key for spec in selected for dep in spec.deps} - {spec.key for spec in specs}
                results: Iterable[Materialization]
                if partitions is not None and has_several_partitions(context):
                    step = body(*args, **kwargs)
                    assert callable(step)  # Of an asset by split.
                    results = _make_splits(context, study, read, step)
                else:
                    require_passed_checks(context, study, read)
                    result = body(*args, **kwargs)
                    result = result(splits_of(context, study)) if callable(result) else result
                    results = [result] if isinstance(result, dg.MaterializeResult) else result
                made: list[Materialization] = []
                try:
                    for materialization in results:
                        yield materialization
                        made.append(materialization)
                except Exception as error:
                    if checks is not None and retry_wait(context, error) is None:
                        yield from _evaluate_checks(context, checks, kwargs["store"].of(study), made)
                    raise

        return dg.multi_asset(
            name=asset_key(study, name).to_python_identifier(),
            specs=specs,
            can_subset=len(specs) > 1,
            partitions_def=partitions,
            pool=pool,
        )(materialize)

    return decorate


def _make_splits(
    context: dg.AssetExecutionContext, study: Study, read: Collection[dg.AssetKey], step: SplitStep
) -> Iterator[Materialization]:
    """Make the splits of a run one by one, each as a run of that split alone would."""

    def make(split: str) -> dg.AssetMaterialization:
        require_passed_checks(context, study, read, [split])
        return partition_materialization(context, split, step([split]))

    yield from make_each(splits_of(context, study), make)
    yield recorded_result()


def _evaluate_checks(
    context: dg.AssetExecutionContext, checks: FileChecks, store: Store, made: Iterable[Materialization]
) -> Iterator[dg.AssetCheckEvaluation]:
    """Run the checks of what a step made before it failed, if its run includes them."""
    planned = [
        entry.get_dagster_event().asset_check_planned_data.asset_check_key
        for entry in context.instance.all_logs(
            context.run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
        )
    ]
    for materialization in made:
        key = materialization.asset_key or context.asset_key
        split = materialization.partition if isinstance(materialization, dg.AssetMaterialization) else None
        selected = [check for check in planned if check.asset_key == key]
        for spec, result in checks.results(store, [split] if split else (), selected):
            yield check_evaluation(context, spec, split, result)


def analysis_result(
    context: dg.AssetExecutionContext, result: AnalysisResult, metadata: Mapping[str, Any]
) -> dg.MaterializeResult[None]:
    """What Dagster records of an analysis: its numbers and its file; where it does not apply, a warning says why."""
    reason = {"obstacle": result.unavailable_reason} if result.unavailable_reason else {}
    if result.unavailable_reason:
        context.log.warning(result.unavailable_reason)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.digest),
        metadata={**metadata, "file": dg.MetadataValue.path(result.path), **reason},
    )


def label_scale(study: Study) -> tuple[str, ...]:
    """The part of a code version that marks labels as grades; empty for other labels, so that their versions stay."""
    return ("ordinal",) if study.vocabulary.labels.ordinal else ()


def code_version(*parts: object) -> str:
    """A version that changes with what is given and with our own extraction code."""
    text = "|".join(part.model_dump_json() if isinstance(part, BaseModel) else str(part) for part in parts)
    return hashlib.sha256(f"{EXTRACTION_VERSION}|{text}".encode()).hexdigest()[:16]


def data_version(digests: Mapping[str, str]) -> dg.DataVersion:
    """The data version of an asset: the digest of its one split, or of all of them where splits are not partitions."""
    if len(digests) == 1:
        return dg.DataVersion(*digests.values())
    return dg.DataVersion(hashlib.sha256(repr(dict(digests)).encode()).hexdigest())
