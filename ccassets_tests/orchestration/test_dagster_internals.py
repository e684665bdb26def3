"""What we rely on in Dagster without a promise of theirs: a test that fails names what another release moved."""

import ast
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import dagster as dg
import pytest

from ccassets_tests.house.source_tree import PACKAGE

NAME = "ccassets.orchestration.dagster_internals"
SOURCE = PACKAGE / "orchestration" / "dagster_internals.py"
SPLITS = ("train", "val")


def private_imports() -> list[tuple[str, str]]:
    """Module and name of everything that is imported from private modules of Dagster."""
    nodes = [
        node for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    private = [node for node in nodes if node.module and node.module.startswith("dagster._")]
    return [(node.module or "", alias.name) for node in private for alias in node.names]


@pytest.mark.parametrize(("module", "name"), private_imports(), ids=lambda part: str(part))
def test_dagster_has_the_private_name(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.fixture
def internals() -> ModuleType:
    """Our module, imported when a test runs: a name that is gone is one failure above, and an error in the others."""
    return importlib.import_module(NAME)


def assets(code_version: str = "1", *, with_template: bool = False) -> Sequence[dg.AssetsDefinition]:
    """`images`, by split, is read by `database`, which is read by `report`; the database may read `template` too."""

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(SPLITS))
    def images(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(data_version=dg.DataVersion(context.run.tags["content"]))

    @dg.asset(deps=[images, *(["template"] if with_template else [])], code_version=code_version)
    def database(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        if context.run.tags["content"] == "broken":
            raise ValueError("broken")
        return dg.MaterializeResult(data_version=dg.DataVersion("database"))

    @dg.asset(deps=[database])
    def report() -> None: ...

    @dg.asset
    def template() -> None: ...

    return [images, database, report, *([template] if with_template else [])]


def repository(assets: Sequence[dg.AssetsDefinition]) -> dg.RepositoryDefinition:
    return dg.Definitions(assets=assets).get_repository_def()


@pytest.fixture
def instance() -> dg.DagsterInstance:
    """Records in which `images`, `database` and `report` are fresh."""
    instance = dg.DagsterInstance.ephemeral()
    for split in SPLITS:
        materialize(instance, "images", split)
    materialize(instance, "database")
    materialize(instance, "report")
    return instance


def materialize(instance: dg.DagsterInstance, asset: str, split: str | None = None, content: str = "first") -> str:
    """Run an asset; the run's id."""
    result = dg.materialize(
        assets(),
        selection=asset,
        instance=instance,
        partition_key=split,
        tags={"content": content},
        raise_on_error=False,
    )
    return result.run_id


def not_fresh(internals: ModuleType, instance: dg.DagsterInstance, assets: Sequence[dg.AssetsDefinition]) -> set[str]:
    """What is stale or missing, as `asset: STATUS` or `asset:split: STATUS`."""
    records = internals.AssetRecords(instance, repository(assets))
    answers = set()
    for node in repository(assets).asset_graph.asset_nodes:
        for split in node.partitions_def.get_partition_keys() if node.partitions_def else [None]:
            name = f"{node.key.to_user_string()}:{split}" if split else node.key.to_user_string()
            answers.add(f"{name}: {records.stale_status(node.key, split).value}")
    return {answer for answer in answers if not answer.endswith(": FRESH")}


def test_the_resolver_of_staleness_says_what_the_ui_shows(internals: ModuleType, instance: dg.DagsterInstance) -> None:
    assert not_fresh(internals, instance, assets()) == set()
    assert not_fresh(internals, instance, assets("2")) == {"database: STALE"}
    assert not_fresh(internals, instance, assets(with_template=True)) == {"database: STALE", "template: MISSING"}
    materialize(instance, "images", "val", content="second")
    assert not_fresh(internals, instance, assets()) == {"database: STALE"}


def test_records_are_read_in_one_query_and_kept(
    internals: ModuleType, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: list[Any] = []
    read = instance.event_log_storage.get_asset_records
    monkeypatch.setattr(
        instance.event_log_storage, "get_asset_records", lambda keys=None: queries.append(keys) or read(keys)
    )
    records = internals.AssetRecords(instance, repository(assets()))
    keys = [dg.AssetKey(name) for name in ("images", "database", "report")]
    runs = [records.entry(key).last_run_id for key in keys]
    assert [set(query) for query in queries] == [set(keys)]
    materialize(instance, "report")
    assert [records.entry(key).last_run_id for key in keys] == runs


def test_an_entry_names_the_last_run_and_the_last_materialization(
    internals: ModuleType, instance: dg.DagsterInstance
) -> None:
    good = internals.AssetRecords(instance, repository(assets())).entry(dg.AssetKey("database"))
    assert good.last_materialization.run_id == good.last_run_id
    failed = materialize(instance, "database", content="broken")
    entry = internals.AssetRecords(instance, repository(assets())).entry(dg.AssetKey("database"))
    assert (entry.last_run_id, entry.last_materialization.run_id) == (failed, good.last_run_id)
    unknown = internals.AssetRecords(instance, repository(assets(with_template=True)))
    assert unknown.entry(dg.AssetKey("template")) is None


def test_a_condition_of_our_own_is_true_of_what_is_stale_alone(
    internals: ModuleType, instance: dg.DagsterInstance
) -> None:
    class Stale(dg.AutomationCondition[dg.AssetKey]):
        @property
        def name(self) -> str:
            return "stale"

        def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
            return internals.stale_candidates(context)  # type: ignore[no-any-return]

    def requested(assets: Sequence[dg.AssetsDefinition]) -> set[str]:
        conditioned = [
            asset.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=Stale()))
            for asset in assets
        ]
        result = dg.evaluate_automation_conditions(dg.Definitions(assets=conditioned), instance)
        keys = [key for asset in assets for key in asset.keys]
        return {key.to_user_string() for key in keys if result.get_num_requested(key)}

    assert requested(assets()) == set()
    assert requested(assets("2")) == {"database"}
    assert requested(assets(with_template=True)) == {"database"}, "what is missing is not stale"


def test_define_asset_job_gives_a_job_of_our_annotation(internals: ModuleType) -> None:
    assert isinstance(dg.define_asset_job("job"), internals.Job)


def test_a_pool_says_its_limit_and_gives_back_the_slot_of_a_failed_run() -> None:
    instance = dg.DagsterInstance.ephemeral()
    storage = instance.event_log_storage
    assert instance.get_concurrency_config().pool_config.default_pool_limit is None
    assert instance.run_monitoring_enabled is False
    storage.set_concurrency_slots("pool", 1)
    assert [limit.name for limit in storage.get_pool_limits()] == ["pool"]
    run = instance.create_run_for_job(dg.Definitions(assets=assets()).resolve_implicit_global_asset_job_def())
    storage.claim_concurrency_slot("pool", run.run_id, "step")
    instance.report_run_failed(run, "The process of this run was killed.")
    storage.free_concurrency_slots_for_run(run.run_id)
    assert storage.get_concurrency_info("pool").claimed_slots == []


def test_a_sensor_is_given_the_repository_that_it_stands_in() -> None:
    definitions = dg.Definitions(assets=assets())

    @dg.sensor(target=[])
    def watch(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        assert context.repository_def is not None
        return dg.SkipReason(str(len(list(context.repository_def.asset_graph.asset_nodes))))

    with dg.build_sensor_context(dg.DagsterInstance.ephemeral(), definitions=definitions) as context:
        assert watch.evaluate_tick(context).skip_message == "3"


def test_a_run_of_several_partitions_records_each_by_itself_and_goes_on(internals: ModuleType) -> None:
    splits = dg.StaticPartitionsDefinition(SPLITS)
    spec = dg.AssetCheckSpec("good", asset="features", blocking=True, partitions_def=splits)

    @dg.asset
    def encoder() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(data_version=dg.DataVersion("weights"))

    @dg.multi_asset(specs=[dg.AssetSpec("features", deps=[encoder], code_version="3")], partitions_def=splits)
    def features(context: dg.AssetExecutionContext) -> Any:
        for split in context.partition_keys:
            result = dg.MaterializeResult[None](data_version=dg.DataVersion(f"of {split}"), metadata={"name": split})
            yield internals.partition_materialization(context, split, result)
        yield internals.recorded_result()

    @dg.multi_asset_check(specs=[spec])
    def check(context: dg.AssetCheckExecutionContext) -> Any:
        for split in SPLITS:
            yield internals.check_evaluation(context, spec, split, dg.AssetCheckResult(passed=True))
        yield dg.Output(None, spec.get_python_identifier())

    @dg.asset(deps=[features])
    def database() -> None: ...

    instance = dg.DagsterInstance.ephemeral()
    names = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    all_assets = [encoder, features, database]
    result = dg.materialize([*all_assets, check], instance=instance, tags=dict(zip(names, SPLITS, strict=True)))

    records = {
        split: instance.fetch_materializations(dg.AssetRecordsFilter(dg.AssetKey("features"), [split]), 9).records
        for split in SPLITS
    }
    for split, [record] in records.items():
        assert record.asset_materialization is not None
        tags = record.asset_materialization.tags or {}
        assert tags["dagster/data_version"] == f"of {split}"
        assert tags["dagster/code_version"] == "3"
        assert tags["dagster/input_data_version/encoder"] == "weights"
        assert record.asset_materialization.metadata["name"].value == split
    evaluations = result.get_asset_check_evaluations()
    targets = {one.partition: one.target_materialization_data for one in evaluations}
    assert {split: target and target.storage_id for split, target in targets.items()} == {
        split: record.storage_id for split, [record] in records.items()
    }
    assert all(one.blocking for one in evaluations)
    assert instance.get_latest_materialization_event(dg.AssetKey("database")), "what is made of it goes on"
    assert not_fresh(internals, instance, all_assets) == set()
