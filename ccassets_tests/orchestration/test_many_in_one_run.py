"""One run for many splits and one step for many templates: each is recorded, checked, blocked and failed by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pytest

from ccassets.database.reader import open_database
from ccassets.extraction.sources import recorded_card
from ccassets.extraction.text_extraction import template_part
from ccassets.orchestration.blocking import failed_blocking_checks
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import FIRST_PARTITION, LAST_PARTITION, asset_key
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import parts
from ccassets_tests.orchestration.graphql import stale
from ccassets_tests.orchestration.study_runs import run_job, status_of
from ccassets_tests.orchestration.test_build import failure, rewrite_with_long_vectors

ALL = ("train", "test")


def versions(study: Study, asset: str) -> dict[str | None, Mapping[str, str]]:
    """By split, the versions recorded with the newest materialization: its own, and those of what it was made of."""
    with dagster_instance() as instance:
        newest = {
            split: instance.fetch_materializations(dg.AssetRecordsFilter(asset_key(study, asset), [split]), 1).records[
                0
            ]
            for split in study.splits
        }
    pointers = "dagster/input_event_pointer"
    return {
        split: {key: tag for key, tag in record.event_log_entry.tags.items() if not key.startswith(pointers)}  # type: ignore[union-attr]
        for split, record in newest.items()
    }


def evaluations(result: dg.ExecuteInProcessResult) -> list[tuple[str, str | None, bool]]:
    return sorted((one.check_name, one.partition, one.passed) for one in result.get_asset_check_evaluations())


def extract_without_checks(study: Study) -> dg.ExecuteInProcessResult:
    selection = dg.AssetSelection.assets(asset_key(study, "image_features")).without_checks()
    job = dg.Definitions(jobs=[dg.define_asset_job("unchecked", selection=selection)])
    with dagster_instance() as instance:
        return (
            dg.Definitions.merge(definitions_of(study), job)
            .resolve_job_def("unchecked")
            .execute_in_process(
                instance=instance,
                tags=dict(zip((FIRST_PARTITION, LAST_PARTITION), ALL, strict=True)),
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )
        )


def damage_parts(study: Study, split: str) -> None:
    """Give the parts of a split vectors that are too long, for which its checks fail."""
    for part in parts(study):
        with open_database(part) as database:
            damaged = split in database.splits
        if damaged:
            rewrite_with_long_vectors(part)


def test_a_run_of_several_splits_records_and_checks_each_as_a_run_of_its_own(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCASSETS_STUDIES", str(study.folder.parent))
    assert run_job(study, "read_encoder").success
    assert run_job(study, "read_images", ALL).success
    together = run_job(study, "extract_images", ALL)
    assert together.success
    assert len({event.step_key for event in together.all_events if event.step_key}) == 2
    assert evaluations(together) == sorted(
        (check, split, True) for check in ("structure", "values") for split in study.splits
    )
    not_fresh = stale("cells")
    assert not [name for name in not_fresh if ":" in name], not_fresh
    recorded = {asset: versions(study, asset) for asset in ("images", "image_features")}
    assert len({tags["dagster/data_version"] for tags in recorded["image_features"].values()}) == 3

    for asset, job in (("images", "read_images"), ("image_features", "extract_images")):
        assert run_job(study, job, "val").success
        alone = versions(study, asset)["val"]
        data = "dagster/input_data_version/cells/images"  # Of a range it is that of the range; the pointer decides.
        assert {key: tag for key, tag in alone.items() if key != data} == {
            key: tag for key, tag in recorded[asset]["val"].items() if key != data
        }
    assert not [name for name in stale("cells") if ":" in name]


def test_a_bad_split_fails_alone_and_its_features_wait_for_it(study: Study, image_folder: Path) -> None:
    (image_folder / "val" / "blood" / "000.png").write_bytes(b"no image")
    assert run_job(study, "read_encoder").success
    result = run_job(study, "read_images", ALL)
    assert "val/blood/000.png" in failure(result)
    status = status_of(study)
    assert status["failed"] == ["images:val"]
    assert {"images:train", "images:test"} <= set(status["built"])

    features = run_job(study, "extract_images", ALL)
    assert "The images of split 'val' of cells have not been read yet" in failure(features)
    assert {"image_features:train", "image_features:test"} <= set(status_of(study)["built"])
    assert evaluations(features) == [
        (check, split, True) for check in ("structure", "values") for split in ("test", "train")
    ]

    damage_parts(study, "train")
    features = run_job(study, "extract_images", ALL)
    assert ("values", "train", False) in evaluations(features)
    assert [one for one in evaluations(features) if one[1] == "test"] == [
        (check, "test", True) for check in ("structure", "values")
    ]
    assert evaluations(extract_without_checks(study)) == []


def test_a_split_that_fails_its_check_keeps_no_other_from_being_checked(study: Study) -> None:
    assert run_job(study, "read_encoder").success
    assert run_job(study, "read_images", ALL).success
    assert run_job(study, "extract_images", ALL).success
    damage_parts(study, "train")

    result = run_job(study, "extract_images", ALL)

    assert not result.success
    assert [one.partition for one in result.get_asset_materialization_events()] == ["train", "val", "test"]
    assert {one for one in evaluations(result) if one[0] == "values"} == {
        ("values", "train", False),
        ("values", "val", True),
        ("values", "test", True),
    }
    with dagster_instance() as instance:
        key = asset_key(study, "image_features")
        failed = list(failed_blocking_checks(instance, {key: study.splits}, [dg.AssetCheckKey(key, "values")]))
    assert [check.partition for check in failed] == ["train"]


def test_a_bad_template_fails_alone(study: Study) -> None:
    assert run_job(study, "read_encoder").success
    store = Store.of(study)
    name, *others = study.vocabulary.templates()
    part = template_part(study.vocabulary.templates()[name], recorded_card(study, store), store)
    (part / "in the way").mkdir(parents=True)
    result = run_job(study, "extract_text")
    assert part.name in failure(result)
    status = status_of(study)
    assert status["failed"] == [f"template_features/{name}"]
    assert {f"template_features/{other}" for other in others} <= set(status["built"])
    assert sorted(
        (one.asset_key.path[-1], one.check_name, one.passed) for one in result.get_asset_check_evaluations()
    ) == [(other, check, True) for other in sorted(others) for check in ("texts", "values")]

    (part / "in the way").rmdir()
    part.rmdir()
    result = run_job(study, "extract_text")
    assert result.success
    assert len({event.step_key for event in result.all_events if event.step_key}) == 2
    assert len(evaluations(result)) == 2 * (1 + len(others))
