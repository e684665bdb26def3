"""What runs by itself: simulated nights, changed sources, failures; and once, the daemon for real."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from ccassets.analysis.results import RESULT_FILES
from ccassets.datasets.manifest import Manifest
from ccassets.errors import BuildError, StudyError
from ccassets.orchestration.assets import study_assets
from ccassets.orchestration.automation import changed_study_file
from ccassets.orchestration.build import run_build
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.made_studies import edit_study, picture, write_study
from ccassets_tests.orchestration.study_runs import run_job, status_of

EVENING = datetime(2030, 1, 1, 20, 0, tzinfo=timezone.utc)
SOURCES = {"encoder", "images:train", "images:val", "images:test"}
REPORTS = ("validation_report", *RESULT_FILES)


class Daemon:
    """The asset daemon's evaluations at chosen times; what it asks for is materialized when a test says so."""

    def __init__(self, study: Study, instance: dg.DagsterInstance) -> None:
        self.study = study
        self.instance = instance
        self.cursor: Any = None
        self.asks(EVENING - timedelta(minutes=1))

    def asks(self, when: datetime) -> set[str]:
        """What is asked for at a time, as `asset` or `asset:split`."""
        result = dg.evaluate_automation_conditions(
            definitions_of(self.study), self.instance, cursor=self.cursor, evaluation_time=when
        )
        self.cursor = result.cursor
        names = set()
        for key in definitions_of(self.study).resolve_asset_graph().materializable_asset_keys:
            name = "/".join(key.path[1:])
            for split in result.get_requested_partitions(key):
                names.add(f"{name}:{split}" if split else name)
        return names

    def materializes(self, *names: str) -> None:
        for name in names:
            asset, _, split = name.partition(":")
            result = dg.materialize(
                study_assets(self.study),
                selection=dg.AssetSelection.assets(dg.AssetKey([self.study.name, *asset.split("/")])),
                instance=self.instance,
                partition_key=split or None,
                resources={"store": StoreResource(), "encoder": EncoderResource()},
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            assert result.success


def edit(study: Study) -> Study:
    return edit_study(study, lambda a: a["vocabulary"]["labels"]["templates"].__setitem__(1, "an image of {}"))


def test_a_new_study_is_built_from_its_sources_on(study: Study) -> None:
    with dagster_instance() as instance:
        daemon = Daemon(study, instance)
        daemon.cursor = None
        assert daemon.asks(EVENING) >= SOURCES


@pytest.mark.slow
def test_every_night_the_sources_are_read_and_only_what_is_stale_follows(study: Study, image_folder: Path) -> None:
    run_build(study)
    with dagster_instance() as instance:
        daemon = Daemon(study, instance)
        assert daemon.asks(EVENING) == set()

        picture(900).save(image_folder / "val" / "blood" / "000.png")
        assert daemon.asks(EVENING + timedelta(hours=5)) == set(), "nothing before the night"
        night = EVENING + timedelta(hours=7, minutes=1)
        assert daemon.asks(night) == SOURCES
        daemon.materializes(*sorted(SOURCES))
        assert daemon.asks(night + timedelta(minutes=1)) == {"image_features:val"}
        daemon.materializes("image_features:val")
        assert daemon.asks(night + timedelta(minutes=2)) == {"feature_database"}
        daemon.materializes("feature_database")
        assert daemon.asks(night + timedelta(minutes=3)) == set(REPORTS)
        daemon.materializes(*REPORTS)
        assert daemon.asks(night + timedelta(minutes=4)) == set()

        next_night = night + timedelta(days=1)
        assert daemon.asks(next_night) == SOURCES
        daemon.materializes(*sorted(SOURCES))
        assert daemon.asks(next_night + timedelta(minutes=1)) == set(), "equal sources wake nothing"


def test_an_edited_template_is_followed_at_once_also_when_the_switch_is_turned_on_after_it(study: Study) -> None:
    run_build(study)
    with dagster_instance() as instance:
        daemon = Daemon(study, instance)
        daemon.study = edit(study)
        first_look = dg.evaluate_automation_conditions(definitions_of(daemon.study), instance, evaluation_time=EVENING)
        assert first_look.total_requested == 1
        assert daemon.asks(EVENING) == {"template_features/label_prompts_t02"}
        daemon.materializes("template_features/label_prompts_t02")
        assert daemon.asks(EVENING + timedelta(minutes=2)) == {"feature_database"}


def test_what_failed_waits_for_the_night(study: Study, image_folder: Path) -> None:
    (image_folder / "val" / "blood" / "000.png").write_bytes(b"no image")
    with pytest.raises(BuildError, match=r"val/blood/000\.png"):
        run_build(study)
    assert status_of(study)["failed"] == ["images:val"]
    with dagster_instance() as instance:
        daemon = Daemon(study, instance)
        assert "images:val" not in daemon.asks(EVENING)
        assert "images:val" in daemon.asks(EVENING + timedelta(hours=7, minutes=1))


@dataclass(frozen=True)
class Tick:
    """What the watch said, and the runs it asked for: job, split and key of each."""

    said: str
    runs: list[tuple[str | None, str | None]]
    keys: list[str | None]


def watch(study: Study) -> Tick:
    sensor = next(s for s in definitions_of(study).sensors or () if s.name.endswith("watch_sources"))
    assert isinstance(sensor, dg.SensorDefinition)
    said: list[str] = []
    with dagster_instance() as instance:
        resources = {"store": StoreResource(), "encoder": EncoderResource()}
        context = dg.build_sensor_context(instance, definitions=definitions_of(study), resources=resources)
        context.log.addFilter(lambda record: bool(said.append(record.getMessage())) or True)
        result = sensor.evaluate_tick(context)
    runs = result.run_requests or []
    return Tick(
        " ".join([*said, result.skip_message or ""]).strip(),
        [(run.job_name, run.partition_key) for run in runs],
        [run.run_key for run in runs],
    )


def follow(study: Study, tick: Tick) -> None:
    """Run what the watch asked for."""
    for job, split in tick.runs:
        assert run_job(study, (job or "").removeprefix("cells__"), split).success


def build_watched(tmp_path: Path, **vocabulary: Any) -> Study:
    study = write_study(
        tmp_path / "studies" / "cells",
        images=tmp_path / "pictures",
        encoder=tmp_path / "weights",
        splits=["val", "test"],
        vocabulary=vocabulary,
    )
    run_build(study)
    return study


@pytest.fixture
def watched(tmp_path: Path, image_folder: Path, weights: Path) -> Study:
    """A small study without analyses, built."""
    return build_watched(tmp_path, custom={"own": ["a red cell"]})


@pytest.fixture
def watched_with_analyses(tmp_path: Path, image_folder: Path, weights: Path) -> Study:
    """A small study, built."""
    return build_watched(tmp_path, concepts={"words": ["red cell"], "templates": ["a {}"]})


def test_the_watch_makes_no_run_while_nothing_changes(watched: Study) -> None:
    assert watch(watched) == Tick("Sources and files have not changed since they were last read.", [], [])


def test_the_watch_asks_once_for_a_split_whose_files_changed(watched: Study, image_folder: Path) -> None:
    picture(901).save(image_folder / "test" / "blood" / "000.png")
    first, second = watch(watched), watch(watched)
    assert first.runs == [("cells__read_images", "test")]
    assert first.keys == second.keys


def test_an_image_that_can_be_read_again_is_read_again(tmp_path: Path, image_folder: Path, weights: Path) -> None:
    study = write_study(
        tmp_path / "studies" / "cells",
        images=image_folder,
        encoder=weights,
        splits=["val", "test"],
        extraction={"on_bad_image": "skip"},
    )
    run_build(study)
    # As it is recorded where the disk failed once: the files are what they were.
    path = Store.of(study).manifest("test")
    manifest = Manifest.load(path)
    rows = np.arange(1, len(manifest))
    replace(
        manifest,
        **{name: getattr(manifest, name)[rows] for name in ("rows", "labels", "image_digest", "blank")},
        keys=manifest.keys[1:],
        fingerprints=manifest.fingerprints[1:],
        skipped=((manifest.keys[0], "it cannot be decoded (Input/output error)"),),
    ).save(path)

    first, second = watch(study), watch(study)
    assert first.runs == [("cells__read_images", "test")]
    assert first.keys == second.keys
    assert "images:test" in run_build(study).materialized
    assert Manifest.load(path).digest == manifest.digest
    assert watch(study).runs == []
    assert run_build(study).materialized == []


def test_the_watch_says_that_a_folder_is_gone(watched: Study, image_folder: Path) -> None:
    shutil.rmtree(image_folder / "val")
    tick = watch(watched)
    assert tick.runs == []
    assert "val" in tick.said


def test_a_study_file_that_changed_since_it_was_loaded_is_noticed(watched: Study, image_folder: Path) -> None:
    assert changed_study_file(watched) is None
    edit_study(watched, lambda a: a.update(description="Of two hospitals."))
    assert "reload the definitions" in watch(watched).said
    picture(902).save(image_folder / "test" / "blood" / "000.png")
    tick = watch(watched)
    assert "reload the definitions" in tick.said, "also where there is something to do"
    assert tick.runs == [("cells__read_images", "test")]
    (watched.folder / "defs.yaml").write_text("type: nothing\n")
    assert "cannot be loaded" in watch(watched).said


def test_what_was_deleted_or_replaced_by_hand_is_made_again_parts_first(watched_with_analyses: Study) -> None:
    watched = watched_with_analyses
    store = Store.of(watched)
    shutil.copy(store.database, store.database.with_suffix(".mine"))
    store.database.unlink()
    store.database.with_suffix(".mine").rename(store.database)
    replaced = watch(watched)
    assert replaced.runs == [("cells__build_database", None)]
    assert "feature_database is lost, its file is not the one that was written: it is made again." in replaced.said
    assert watch(watched).keys == replaced.keys, "one run for one loss"
    follow(watched, replaced)
    assert watch(watched).runs == []

    store.database.unlink()
    shutil.rmtree(store.reports)
    shutil.rmtree(store.root / "features")
    lost = watch(watched)
    assert set(lost.runs) == {("cells__extract_text", None), *(("cells__extract_images", s) for s in watched.splits)}
    assert "image_features:val is lost, 5 of 5 images of val are in no part" in lost.said
    assert {name.partition(":")[0].partition("/")[0] for name in status_of(watched)["lost"]} == {
        "template_features",
        "image_features",
        "feature_database",
        "validation_report",
    }
    follow(watched, lost)
    assert watch(watched).runs == [("cells__build_database", None)]
    assert watch(watched).keys != replaced.keys, "another loss, another run"
    follow(watched, watch(watched))
    assert watch(watched).runs == [], "the report came with the database"
    (store.analysis / "concept_atlas.html").unlink()
    assert watch(watched).runs == [("cells__analyse", None)]
    assert run_build(watched).materialized == ["concept_atlas"]


def test_nights_and_schedules_are_of_the_time_zone_of_the_study(study: Study) -> None:
    def zones(condition: Any) -> set[str]:
        own = {condition.cron_timezone} if hasattr(condition, "cron_timezone") else set()
        return own.union(*map(zones, condition.children))

    for expected in ("UTC", "Asia/Tokyo"):
        edited = edit_study(study, lambda a, zone=expected: a.update(timezone=zone))  # type: ignore[misc]
        definitions = definitions_of(edited)
        schedules = [one for one in definitions.schedules or () if isinstance(one, dg.ScheduleDefinition)]
        assert {schedule.execution_timezone for schedule in schedules} == {expected}
        graph = definitions.resolve_asset_graph()
        assert {
            zone for key in graph.materializable_asset_keys for zone in zones(graph.get(key).automation_condition)
        } == {expected}
    with pytest.raises(StudyError, match=r"timezone: .*expected a time zone such as Europe/Berlin, found 'Mars'"):
        edit_study(study, lambda a: a.update(timezone="Mars"))


@pytest.mark.parametrize("name", ["rebuild_stale", "watch_sources"])
def test_sensors_say_what_they_do_and_ship_switched_off(study: Study, name: str) -> None:
    sensor = next(s for s in definitions_of(study).sensors or () if s.name == f"cells__{name}")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    assert len(sensor.description or "") > 60
