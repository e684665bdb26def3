"""Two studies and two homes beside each other: what they share is parts, and what they know is their own."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickStatus

from ccassets.errors import StorageError
from ccassets.orchestration.build import run_build
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import asset_key
from ccassets.orchestration.run_locks import fail_dead_runs
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.made_studies import edit_study, write_study
from ccassets_tests.orchestration.study_runs import status_of


@pytest.fixture
def small(tmp_path: Path, image_folder: Path, weights: Path) -> tuple[Study, Study]:
    """Two studies of the same five images, with other words."""
    one, two = (
        write_study(
            tmp_path / "studies" / name,
            images=image_folder,
            encoder=weights,
            splits=["val"],
            vocabulary={"custom": {"own": [words]}},
        )
        for name, words in (("one", "a red cell"), ("two", "a blue cell"))
    )
    return one, two


def encoded(study: Study) -> int:
    """How many images the last run of a study's features encoded, as this home has it on record."""
    with dagster_instance() as instance:
        event = instance.get_latest_materialization_event(asset_key(study, "image_features"))
    assert event is not None
    assert event.asset_materialization is not None
    return int(event.asset_materialization.metadata["encoded"].value)  # type: ignore[call-overload]


def present_states(study: Study) -> set[str]:
    return {state for state, names in status_of(study).items() if names}


@pytest.mark.slow
def test_two_studies_share_what_was_encoded_and_age_alone(small: tuple[Study, Study]) -> None:
    one, two = small
    run_build(one)
    run_build(two)
    assert (encoded(one), encoded(two)) == (5, 0)
    edited = edit_study(one, lambda a: a["vocabulary"]["custom"].update(own=["a pale cell"]))
    assert (present_states(edited), present_states(two)) == ({"built", "stale"}, {"built"})
    before = Store.of(two).database.read_bytes()
    run_build(edited)
    assert Store.of(two).database.read_bytes() == before


@pytest.mark.slow
def test_two_homes_know_nothing_of_each_other_and_may_share_a_storage(
    small: tuple[Study, Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = small
    first = run_build(one)
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "second"))
    assert present_states(one) == {"missing"}
    assert run_build(one).path == tmp_path / "second" / "storage" / "one" / "conceptclip_features.h5"
    assert encoded(one) == 5

    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "third"))
    monkeypatch.setenv("CCASSETS_STORAGE", str(tmp_path / "home" / "storage"))
    assert first.path is not None
    written = first.path.stat().st_mtime_ns
    assert run_build(one).path == first.path
    assert encoded(one) == 0
    assert first.path.stat().st_mtime_ns == written, "it was what it should be"


def test_a_run_that_was_killed_in_another_home_is_left_to_that_home(study: Study) -> None:
    folder = Store.of(study).runs
    folder.mkdir(parents=True)
    lock = folder / f"{uuid.uuid4()}.lock"
    lock.touch()
    with dagster_instance() as instance:
        assert fail_dead_runs(instance, folder) == []
    assert lock.exists()


def test_a_home_that_cannot_be_made_is_told_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "file"))

    with (
        pytest.raises(StorageError, match=r"The home .*file cannot be written .*; choose another with --home\."),
        dagster_instance(),
    ):
        pass


def test_many_who_open_a_new_home_at_once_all_get_it_and_leave_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_there = Barrier(6)

    def open_home(_: int) -> int:
        all_there.wait()
        with dagster_instance() as instance:
            return len(instance.get_runs(limit=1))

    for number in range(3):
        monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / f"home {number}"))
        with ThreadPoolExecutor(6) as threads:
            assert list(threads.map(open_home, range(6))) == [0] * 6
        with dagster_instance() as instance:
            assert instance.get_runs() == []


def test_a_new_home_keeps_logs_apart_from_the_studies_and_forgets_ticks(small: tuple[Study, Study], home: Path) -> None:
    one, _ = small
    run_build(one)
    with dagster_instance() as instance:
        runs = {run.run_id for run in instance.get_runs()}
        assert instance.get_tick_retention_settings(InstigatorType.SENSOR)[TickStatus.SKIPPED] == 7
        assert instance.get_tick_retention_settings(InstigatorType.SCHEDULE)[TickStatus.SUCCESS] == 90
    assert {path.name for path in (home / "logs").iterdir()} <= runs
    assert {path.name for path in (home / "storage").iterdir()} & runs == set()


def test_logs_move_with_their_home(small: tuple[Study, Study], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = small
    run_build(one)
    moved = home.rename(home.parent / "moved")
    monkeypatch.setenv("CCASSETS_HOME", str(moved))
    before = len(list((moved / "logs").iterdir()))
    run_build(two)
    assert len(list((moved / "logs").iterdir())) > before
    assert not home.exists()
