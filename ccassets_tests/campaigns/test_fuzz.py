"""A short run of the fuzz campaign, and what longer ones found."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccassets_tests.campaigns.fuzz import DEFECTS, campaign, iteration, sources

FOUND = ((1, 167), (1, 593), (1, 1029), (2, 901), (2, 959), (2, 1925))
"""Seed and iteration of what ended in a traceback of ours, or went round for ever in HDF5, before it was mended."""


@pytest.mark.campaign
@pytest.mark.slow
def test_damaged_files_are_answered_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    ends = campaign(seed=4, iterations=250)
    assert sum(ends.values()) == 250
    assert ends["findings"] > 150
    assert ends["refused"] > 10
    assert not DEFECTS & set(ends), capsys.readouterr().out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sources(tmp_path_factory.mktemp("fuzz") / "sources")


@pytest.mark.parametrize(("seed", "number"), FOUND)
def test_what_was_found_stays_mended(seed: int, number: int, files: list[Path], tmp_path: Path) -> None:
    done, outcome = iteration(seed, number, files, tmp_path / "damaged.h5")
    assert outcome.end not in DEFECTS, f"{done}\n{outcome.text}"
