"""The runner on Ray: a local cluster of two workers gives the bytes of one process, whatever dies meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import ccassets
from ccassets.errors import EncoderError
from ccassets.extraction import extract_images
from ccassets.extraction.runners import choose_runner
from ccassets.extraction.runners.on_ray import _cores_each
from ccassets.progress import StageTimes
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import build, build_in_storage, differences
from ccassets_tests.extraction.test_runners import encoded, read_sources, undisturbed, watched
from ccassets_tests.made_studies import SPLITS


def test_workers_get_as_many_cores_as_fit_on_whole_nodes() -> None:
    assert _cores_each([8, 8], 5) == 2
    assert _cores_each([8, 8], 4) == 4
    assert _cores_each([64, 4], 1) == 64
    assert _cores_each([2], 3) == 1
    assert _cores_each([0], 1) == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, with as many cores as two workers need."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ccassets[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_ray_workers_give_the_bytes_of_one_process(study: Study, tmp_path: Path) -> None:
    read_sources(study)
    seen: list[tuple[int, int]] = []
    times = StageTimes()

    done = extract_images(
        study, SPLITS, runner=choose_runner("ray:2"), progress=lambda *at: seen.append(at), times=times
    )

    assert [split.encoded for split in done.splits] == [9, 5, 4]
    assert seen[-1] == (18, 18)
    assert times.encoding > 0
    built = build(study)
    assert built.encoded == 0
    assert differences(built.path, build_in_storage(study, tmp_path / "alone").path) == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_ray_worker_that_is_killed_at_a_shard_is_started_again(tmp_path: Path, image_folder: Path) -> None:
    study, log = watched(tmp_path, image_folder, deaths=2)
    read_sources(study)

    extract_images(study, SPLITS, runner=choose_runner("ray:2"))

    assert len(encoded(log)) >= 3
    built = build(study)
    assert built.encoded == 0
    assert not list(Store.of(study).root.rglob("*.partial"))
    assert differences(built.path, undisturbed(study, tmp_path)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_errors_on_ray_are_sentences(tmp_path: Path, image_folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (30, 30), "white").save(image_folder / "val" / "white" / "000.png")
    broken, _ = watched(tmp_path, image_folder, fault="nan")
    read_sources(broken)
    with pytest.raises(EncoderError, match=r"expected finite values, found NaN or infinity\nIt was encoding 'val/"):
        extract_images(broken, ["val"], runner=choose_runner("ray:2"))

    dying, _ = watched(tmp_path, image_folder, deaths=1000)
    read_sources(dying)
    with pytest.raises(EncoderError, match="A Ray worker died again and again"):
        extract_images(dying, ["train"], runner=choose_runner("ray:1"))


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_named(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ccassets[ray]'")
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    read_sources(study)

    with pytest.raises(EncoderError, match=r"No Ray cluster was found \(address 'auto'\): start one"):
        ccassets.extract_images(study, "train", runner=choose_runner("ray:2"))
