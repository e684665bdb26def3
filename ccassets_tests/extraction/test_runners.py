"""Runners and jobs: whoever encodes a shard, however many, and whatever dies meanwhile, the same bytes come out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import ccassets
from ccassets.cli import main
from ccassets.errors import DatasetError, EncoderError, StudyError
from ccassets.extraction import extract_images, extract_shards
from ccassets.extraction.runners import choose_runner
from ccassets.progress import StageTimes
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import (
    COLOURS,
    arrays,
    build,
    build_in_storage,
    deep_errors,
    differences,
    parts,
    read_sources,
)
from ccassets_tests.made_studies import SPLITS, edit_study, picture, write_study

WATCHED = (
    COLOURS
    + '''
import os, signal, time
from pathlib import Path


class Watched(Colours):
    """Writes down who encodes which batch, `slow` seconds each; dies by SIGKILL the first `deaths` times."""

    def __init__(self, log, slow=0.0, deaths=0, fault=None):
        super().__init__(fault=fault)
        self.log, self.slow, self.deaths = Path(log), slow, deaths

    def encode_pixels(self, pixels):
        digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {' '.join(digests)}\\n")
        if self.log.read_text().count("\\n") <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.slow)
        return super().encode_pixels(pixels)
'''
)


def watched(tmp_path: Path, image_folder: Path, **options: Any) -> tuple[Study, Path]:
    """A study whose encoder writes down what it encodes, and where it does."""
    log = tmp_path / "encoded.log"
    encoder = {"kind": "python", "target": "watched:Watched", "options": {"log": str(log), **options}}
    study = write_study(tmp_path / "studies" / "cells", images=image_folder, encoder=encoder, vocabulary={})
    (study.folder / "watched.py").write_text(WATCHED)
    return study, log


def encoded(log: Path) -> dict[str, list[str]]:
    """The images that every process encoded."""
    by_process: dict[str, list[str]] = {}
    for line in log.read_text().splitlines():
        process, *images = line.split()
        by_process.setdefault(process, []).extend(images)
    return by_process


def undisturbed(study: Study, tmp_path: Path) -> Path:
    """The database of the same pictures that one process makes without a runner."""
    options = study.encoder.model_dump(mode="json")["options"]
    plain = {name: value for name, value in options.items() if name == "log"}
    alone = write_study(
        tmp_path / "alone" / "cells",
        images=study.resolve(study.dataset.root),
        encoder={"kind": "python", "target": "watched:Watched", "options": plain},
        vocabulary={},
    )
    (alone.folder / "watched.py").write_text(WATCHED)
    return build_in_storage(alone, tmp_path / "alone").path


# --- the loop over batches ---------------------------------------------------------------------------


def test_progress_counts_every_batch_and_the_time_of_each_stage(study: Study) -> None:
    read_sources(study)
    seen: list[int] = []
    times = StageTimes()

    extract_images(study, SPLITS, progress=lambda done, total: seen.append(done), times=times)

    assert seen == [2, 4, 6, 8, 9, 11, 13, 14, 16, 18]
    assert 0 < times.encoding <= times.seconds
    assert times.encoding + times.decoding + times.writing == pytest.approx(times.seconds)


def test_a_batch_that_the_encoder_fails_on_is_named_and_the_shards_before_it_are_kept(study: Study) -> None:
    read_sources(study)
    encoder = ccassets.load_encoder(study)
    encode_pixels = encoder.encode_pixels

    def failing(pixels: Any) -> Any:
        if len(pixels) == 1:
            raise EncoderError("the device is out of order")
        return encode_pixels(pixels)

    encoder.encode_pixels = failing  # type: ignore[method-assign]

    with pytest.raises(EncoderError, match=r"out of order\nIt was encoding 'train/white/008.png' to 'train/white/008"):
        extract_images(study, SPLITS, encoder=lambda: encoder)

    assert [len(arrays(part)["ids"]) for part in parts(study)] == [4, 4]


def test_an_image_that_is_wrong_costs_no_shard_before_it(study: Study, image_folder: Path) -> None:
    read_sources(study)
    picture(1000).save(image_folder / "train" / "platelet" / "004.png")

    with pytest.raises(DatasetError, match=r"train/platelet/004\.png is not the image that was read"):
        extract_images(study, ["train"])

    assert [len(arrays(part)["ids"]) for part in parts(study)] == [4]


# --- workers on this machine -------------------------------------------------------------------------


def test_two_local_workers_give_the_bytes_of_one_process(study: Study, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    extract_images(study, SPLITS, runner=choose_runner("local:2"), progress=lambda *at: seen.append(at))

    built = build(study)
    assert built.encoded == 0
    assert deep_errors(built, study) == []
    assert differences(built.path, build_in_storage(study, tmp_path / "alone").path) == []
    assert seen[-1] == (18, 18)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_worker_that_is_killed_at_a_shard_costs_that_shard_and_nothing_else(
    tmp_path: Path, image_folder: Path
) -> None:
    study, log = watched(tmp_path, image_folder, deaths=2)
    read_sources(study)
    times = StageTimes()

    done = extract_images(study, SPLITS, runner=choose_runner("local:2"), times=times)

    assert [split.encoded for split in done.splits] == [9, 5, 4]
    assert [len(arrays(part)["ids"]) for part in parts(study)].count(4) == 4
    assert not list(Store.of(study).root.rglob("*.partial"))
    assert len(encoded(log)) in {3, 4}  # The one that was replaced, or both.
    assert times.share(times.encoding) + times.share(times.decoding) + times.share(times.writing) == pytest.approx(1)
    assert differences(build(study).path, undisturbed(study, tmp_path)) == []


def test_workers_that_die_whatever_is_tried_end_in_a_sentence(tmp_path: Path, image_folder: Path) -> None:
    study, log = watched(tmp_path, image_folder, deaths=1000)
    read_sources(study)

    with pytest.raises(EncoderError, match=r"died one after the other .* killed by signal 9\..* use fewer workers"):
        extract_images(study, SPLITS, runner=choose_runner("local:2"))

    assert 4 <= len(encoded(log)) <= 10


def test_an_error_in_a_worker_is_the_one_that_a_single_process_raises(tmp_path: Path, image_folder: Path) -> None:
    from PIL import Image

    study, _ = watched(tmp_path, image_folder, fault="nan")
    Image.new("RGB", (30, 30), "white").save(image_folder / "val" / "white" / "000.png")
    read_sources(study)
    said = []
    for runner in ("local:1", "local:2"):
        with pytest.raises(EncoderError) as error:
            extract_images(study, ["val"], runner=choose_runner(runner), fresh=True)
        said.append(str(error.value))

    assert said[0] == said[1]
    assert said[0].splitlines()[-1].startswith("It was encoding")


def test_workers_end_with_the_process_that_started_them(tmp_path: Path, image_folder: Path) -> None:
    study, log = watched(tmp_path, image_folder, slow=30.0)
    read_sources(study)
    code = (
        "import sys, ccassets\n"
        "from ccassets.extraction import extract_images\n"
        "from ccassets.extraction.runners import choose_runner\n"
        "if __name__ == '__main__':\n"
        "    study = ccassets.load_study(sys.argv[1])\n"
        "    extract_images(study, study.splits, runner=choose_runner('local:2'))\n"
    )
    script = tmp_path / "extract.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script), str(study.folder)], env=os.environ)
    wait_until(lambda: log.exists() and len(encoded(log)) == 2)

    process.kill()
    process.wait()

    wait_until(lambda: not any(Path("/proc", pid).exists() for pid in encoded(log)))


def test_a_picture_of_two_splits_is_encoded_once_and_by_one_worker(tmp_path: Path, image_folder: Path) -> None:
    study, log = watched(tmp_path, image_folder)
    (image_folder / "val" / "blood" / "leak.png").write_bytes(
        (image_folder / "train" / "blood" / "003.png").read_bytes()
    )
    read_sources(study)

    done = extract_images(study, SPLITS, runner=choose_runner("local:2"))

    images = [image for of_process in encoded(log).values() for image in of_process]
    assert [split.encoded for split in done.splits] == [9, 5, 4]
    assert len(images) == len(set(images)) == 18
    assert build(study).encoded == 0


def test_a_build_takes_the_runner_of_the_environment_and_shows_all_workers_in_one_run(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccassets.orchestration.build import run_build
    from ccassets.orchestration.instance import dagster_instance

    study, log = watched(tmp_path, image_folder)
    study = edit_study(study, lambda attributes: attributes["extraction"].update(partitioned=False))
    monkeypatch.setenv("CCASSETS_RUNNER", "local:2")
    said: list[tuple[int, int]] = []
    notes: list[str] = []

    def listen(what: str, done: int, total: int, note: str) -> None:
        if what.startswith("encode images"):
            said.append((done, total))
            notes.append(note)

    built = run_build(study, listener=listen)

    assert "image_features" in built.materialized
    assert str(os.getpid()) not in encoded(log)
    assert said[-1] == (18, 18)
    assert all(note.startswith("encoder busy ") for note in notes)
    with dagster_instance() as instance:
        [record] = instance.fetch_materializations(dg.AssetKey(["cells", "image_features"]), limit=2).records
    metadata = {name: value.value for name, value in record.asset_materialization.metadata.items()}
    shares = [metadata[name] for name in ("encoder_busy", "waited_for_images", "waited_for_disk")]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert metadata["encoded"] == 18


@pytest.mark.parametrize("text", ["slurm", "local:0", "local:-1", "ray:many", "local:2:3", ":2"])
def test_a_runner_that_there_is_not_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCASSETS_RUNNER", text)

    with pytest.raises(StudyError, match=rf"A runner is local, local:N, ray or ray:N with N workers; found '{text}'"):
        choose_runner()


def wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


# --- jobs that share a study -------------------------------------------------------------------------


def test_jobs_share_the_shards_and_the_next_build_encodes_nothing(study: Study, tmp_path: Path) -> None:
    read_sources(study)

    done = [extract_shards(study, number, 4) for number in (3, 1, 4, 2)]

    # Six shards of 4, 4, 1, 4, 1, 4 images, dealt out in turn.
    assert [job.shards for job in done] == [1, 2, 1, 2]
    assert [job.encoded for job in done] == [1, 5, 4, 8]
    assert [extract_shards(study, 1, 1).shards, extract_shards(study, 2, 3).left_to_others] == [0, 0]
    built = build(study)
    assert built.encoded == 0
    assert differences(built.path, build_in_storage(study, tmp_path / "alone").path) == []


def test_one_job_started_twice_encodes_no_image_twice(tmp_path: Path, image_folder: Path) -> None:
    study, log = watched(tmp_path, image_folder, slow=0.3)
    read_sources(study)

    processes = [start_job(study, 1, 2) for _ in range(2)]
    outputs = [process.communicate()[0].split() for process in processes]

    assert [process.returncode for process in processes] == [0, 0]
    images = [image for of_process in encoded(log).values() for image in of_process]
    assert len(images) == len(set(images)) == 4 + 1 + 1  # Every second shard.
    assert sum(int(encoded) for encoded, _ in outputs) == 6
    build(study)
    assert len(parts(study)) == 6


def test_a_job_that_was_killed_at_a_shard_leaves_it_to_the_next(tmp_path: Path, image_folder: Path) -> None:
    study, _ = watched(tmp_path, image_folder, deaths=2)
    read_sources(study)
    killed = start_job(study, 1, 1)
    assert killed.wait() == -9

    again = start_job(study, 1, 1)
    assert again.wait() == -9
    assert extract_shards(study, 1, 1).encoded == 18

    built = build(study)
    assert built.encoded == 0
    assert differences(built.path, undisturbed(study, tmp_path)) == []


def test_a_build_waits_for_the_jobs_that_are_at_work(tmp_path: Path, image_folder: Path) -> None:
    study, log = watched(tmp_path, image_folder, slow=0.3)
    read_sources(study)
    job = start_job(study, 1, 2)
    wait_until(log.exists)

    built = build(study)

    assert job.wait() == 0
    assert built.encoded == 12
    images = [image for of_process in encoded(log).values() for image in of_process]
    assert len(images) == len(set(images)) == 18


def test_a_damaged_part_is_encoded_again_by_the_job_it_belongs_to(study: Study) -> None:
    read_sources(study)
    extract_shards(study, 1, 1)
    damaged = parts(study)[1]
    os.truncate(damaged, damaged.stat().st_size // 2)

    assert [extract_shards(study, number, 2).encoded for number in (1, 2)] == [0, 4]
    assert build(study).encoded == 0


def test_a_job_reads_no_sources_and_says_who_does(study: Study) -> None:
    with pytest.raises(DatasetError, match=r"run `ccassets build \S*cells --plan` once before"):
        extract_shards(study, 1, 2)


def test_a_job_that_is_not_of_so_many_is_refused(study: Study) -> None:
    for number, count in ((0, 4), (5, 4), (-1, 4), (1, 0)):
        with pytest.raises(StudyError, match=rf"1 <= i <= n; found {number}/{count}"):
            extract_shards(study, number, count)


def test_the_command_is_one_job_and_says_what_it_did(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    read_sources(study)

    said = []
    for arguments in (["--shards", "2/4"], [], []):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["ccassets", "extract", str(study.folder), *arguments])
            with pytest.raises(SystemExit) as end:
                main()
        assert end.value.code == 0
        said.append(capsys.readouterr().err.splitlines()[-1])

    assert said[0].startswith("Encoded 8 images in 2 shards; encoder busy ")
    assert said[1].startswith("Encoded 10 images in 4 shards; encoder busy ")
    assert said[2] == "Nothing encoded."


def test_ctrl_c_ends_a_job_and_its_workers_without_a_traceback(tmp_path: Path, image_folder: Path) -> None:
    study, log = watched(tmp_path, image_folder, slow=30.0)
    read_sources(study)
    job = subprocess.Popen(
        [sys.executable, "-m", "ccassets.cli", "extract", str(study.folder)],
        env={**os.environ, "CCASSETS_RUNNER": "local:2"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: log.exists() and len(encoded(log)) == 2)

    os.killpg(job.pid, signal.SIGINT)

    _, said = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "Traceback" not in said
    wait_until(lambda: not any(Path("/proc", pid).exists() for pid in encoded(log)))


def start_job(study: Study, number: int, count: int) -> subprocess.Popen[str]:
    code = (
        "import sys, ccassets\n"
        "from ccassets.extraction import extract_shards\n"
        "done = extract_shards(ccassets.load_study(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))\n"
        "print(done.encoded, done.left_to_others)"
    )
    command = [sys.executable, "-c", code, str(study.folder), str(number), str(count)]
    environment: Mapping[str, str] = os.environ
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
