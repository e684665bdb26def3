"""A short run of the kill campaign, what it found, and that it can find something."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.study.schema import Study
from ccassets.tools.offline_bundle import changed_files, write_bundle
from ccassets_tests.campaigns.faults import Moments
from ccassets_tests.campaigns.forks import Fork
from ccassets_tests.campaigns.kill import ENDS, STAGES, campaign
from ccassets_tests.campaigns.power import Disk, SyncRecord, cut_power, lost


@pytest.mark.campaign
@pytest.mark.slow
def test_killed_builds_are_built_on_to_equal_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = campaign(tmp_path, seed=2, kills=8, stages=STAGES)
    said = capsys.readouterr().out
    assert ends == {"right": 8}, said
    kills = re.findall(rf"kill \d+: ({'|'.join(ENDS)}) in (\w+), start", said)
    assert ({end for end, _ in kills}, {stage for _, stage in kills}) == ({*ENDS}, {*STAGES})


def test_a_power_cut_takes_what_was_not_synced(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "kept").mkdir(parents=True)
    (root / "kept" / "old.json").write_text("old")
    before = Disk.of(root)
    (root / "kept" / "new.json").write_text("new" * 5000)
    record = tmp_path / "synced"
    ends = set()
    for number in range(40):
        image = tmp_path / f"image-{number}"
        damaged = cut_power(root, image, before.synced(record), np.random.default_rng(number))
        assert (image / "kept" / "old.json").read_text() == "old"
        assert lost(image, before) == []
        new = image / "kept" / "new.json"
        whole = new.exists() and new.read_text() == "new" * 5000
        assert (damaged == ["kept/new.json"]) == (new.exists() and not whole)
        ends.add("whole" if whole else "damaged" if new.exists() else "gone")
    assert ends == {"whole", "damaged", "gone"}


def test_a_torn_holdout_access_neither_stops_the_next_nor_takes_it_along(tmp_path: Path) -> None:
    log = HoldoutLog(tmp_path / "looks.jsonl")
    log.record("accuracy", model="a", split="test", rows=4)
    with (tmp_path / "looks.jsonl").open("a") as file:
        file.write('{"at": "2026-')  # Where a crash cut it off.
    log.record("accuracy", model="b", split="test", rows=4)
    assert [access.model for access in log.accesses()] == ["a", "b"]


def test_a_bundle_is_whole_or_not_there_after_a_power_cut(study: Study, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def bundle(root: Path, record: Path, at: int) -> dict[str, int]:
        SyncRecord(root, record)
        moments = Moments(root, lambda: os.kill(os.getpid(), signal.SIGKILL), at)
        write_bundle(study, root / "bundle")
        return {"moments": moments.count}

    def after_a_cut(name: str, at: int) -> tuple[int, Path]:
        root, record, image = (tmp_path / f"{name}-{part}" for part in ("root", "record", "image"))
        root.mkdir()
        before = Disk.of(root)
        _, answer = Fork(lambda: bundle(root, record, at)).end()
        cut_power(root, image, before.synced(record), rng)
        return answer.get("moments", 0), image / "bundle"

    moments, finished = after_a_cut("finished", 1 << 40)
    assert changed_files(finished) == []
    for number in range(8):
        _, broken_off = after_a_cut(f"killed-{number}", int(rng.integers(moments * 3 // 4, moments)))
        assert not broken_off.exists() or changed_files(broken_off) == []
