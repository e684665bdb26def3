"""A short run of the rows campaign, and that it can find something."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ccassets_tests.campaigns.rows import Scenario, WrongError, campaign, undisturbed_build


@pytest.mark.campaign
@pytest.mark.slow
def test_no_row_is_wrong_and_no_right_one_is_lost_unsaid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = campaign(tmp_path, seed=2, scenarios=12)
    assert ends == {"right": 12}, capsys.readouterr().out


@pytest.fixture
def built(tmp_path: Path) -> Scenario:
    """A scenario whose first study is built."""
    scenario = Scenario(tmp_path, np.random.default_rng(0))
    scenario.check(undisturbed_build)
    return scenario


def test_two_rows_that_changed_places_are_wrong(built: Scenario) -> None:
    with h5py.File(built.store(built.studies[0]).database, "r+") as file:
        file["image_features"][:2] = file["image_features"][:2][::-1]

    with pytest.raises(WrongError, match="row 0 is not its picture's"):
        built.rows()


def test_rows_that_are_gone_are_lost(built: Scenario) -> None:
    def lose(scenario: Scenario) -> str:
        for path in scenario.storage.rglob("*.h5"):
            path.unlink()
        return "all removed"

    with pytest.raises(WrongError, match="all removed: 14 right rows are lost"):
        built.check(lose)


def test_a_picture_without_a_row_is_missed(built: Scenario) -> None:
    built.save(built.image_folder / "train" / "blood" / "new.png")

    with pytest.raises(WrongError, match="the rows of train are not its pictures"):
        built.require_complete(built.studies[0])
