"""A short run of the fault campaign, faults through the command line, and what longer runs found."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import ccassets
from ccassets.datasets.image_decoding import decode_image
from ccassets.encoders import load_encoder
from ccassets.errors import CcassetsError, StorageError
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.campaigns.faults import campaign, can_mount, mounted
from ccassets_tests.campaigns.refusals import AVAILABLE
from ccassets_tests.extraction.made_parts import build

linux = pytest.mark.skipif(not AVAILABLE, reason="the kernel is asked to refuse through seccomp")


@pytest.mark.campaign
@linux
@pytest.mark.slow
def test_a_disk_that_refuses_costs_a_sentence_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = campaign(tmp_path, seed=6, faults=12)
    assert sum(ends.values()) == 12
    assert ends["refused"] >= 6
    assert not ends["WRONG"], capsys.readouterr().out


@pytest.fixture
def few_files() -> object:
    """No more open files than there are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 1, hard))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_picture_is_not_called_bad_for_want_of_open_files(image_folder: Path, request: pytest.FixtureRequest) -> None:
    decode_image(image_folder / "train" / "blood" / "000.png")
    request.getfixturevalue("few_files")
    # With `on_bad_image: skip` it would be left out.
    with pytest.raises(StorageError, match="Too many open files"):
        decode_image(image_folder / "train" / "blood" / "000.png")


def test_a_part_is_not_called_damaged_for_want_of_open_files(study: Study, request: pytest.FixtureRequest) -> None:
    built = build(study)
    built.path.unlink()
    request.getfixturevalue("few_files")
    with pytest.raises(StorageError, match="Too many open files"):
        ccassets.plan_study(study)


def test_weights_are_not_called_cut_off_for_want_of_open_files(study: Study, request: pytest.FixtureRequest) -> None:
    load_encoder(study)
    request.getfixturevalue("few_files")
    with pytest.raises(CcassetsError, match="Too many open files"):
        load_encoder(study)


# --- the command line ---------------------------------------------------------------------------------


def build_command(study: Study, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ccassets.cli", "build", str(study.folder / "defs.yaml")]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="only root may mount a small file system")
def test_a_build_on_a_full_disk_ends_in_a_sentence_and_goes_on_with_more_space(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    with mounted(folder, 300_000):
        full = build_command(study, CCASSETS_STORAGE=str(folder))
        assert full.returncode == 1, full.stderr
        assert str(folder) in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=30m", str(folder)], check=True)
        more = build_command(study, CCASSETS_STORAGE=str(folder))
        assert more.returncode == 0, more.stderr
        assert Path(more.stdout.splitlines()[-1]) == Store.of(study, folder).database
