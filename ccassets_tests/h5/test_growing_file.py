"""A growing file: opened, appended to, killed at every point, and given its templates and parameters."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import ccassets.h5.journal as journal
from ccassets import CcassetsError
from ccassets.database.reader import open_database
from ccassets.h5 import append_batch, init_file, load_model_params, save_model_params, write_template
from ccassets_tests.campaigns.power import Disk, SyncRecord, cut_power
from ccassets_tests.h5.batches import LEGACY, assert_same, contents, rows

LISTS = {"label_texts": ["a", "b"], "concept_texts": ["深", "pale"], "prompt_temp_for_concepts": ["{} cell"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "growing.h5"


# --- opening ------------------------------------------------------------------------------------------


def test_a_new_file_is_legal_and_unfiltered(path: Path) -> None:
    with init_file(path, 6, 9, {**LISTS, "dataset": "bloodmnist"}) as file:
        append_batch(file, **rows(0), split_names=["train"] * 4, labels=np.array([[0], [1], [0], [1]]))
        assert file.filename == str(path)

    with h5py.File(path) as file:
        for name, dtype in (
            ("image_features", "<f2"),
            ("image_token_features", "<f2"),
            ("ids", "<i8"),
            ("labels", "<i8"),
        ):
            assert file[name].dtype == np.dtype(dtype)
            assert file[name].chunks is not None
            assert file[name].compression is None
        assert dict(file.attrs) | {"created_at": 0, "provenance": 0} == {
            "D": 6,
            "T_img": 9,
            "created_at": 0,
            "version": "1.0",
            "split_counts": '{"train": 4}',
            "label_texts": '["a", "b"]',
            "concept_texts": '["深", "pale"]',
            "prompt_temp_for_concepts": '["{} cell"]',
            "dataset": '"bloodmnist"',
            "provenance": 0,
        }
        assert file["split"][0].decode() == "train"
    with open_database(path) as database:
        np.testing.assert_array_equal(database.image_features[:], rows(0)["image_feats"].astype(np.float16))
        assert database.splits == {"train": slice(0, 4)}
        assert database.labels.tolist() == [0, 1, 0, 1]
    assert list(path.parent.iterdir()) == [path]


def test_chunks_are_whole_rows_of_about_a_mebibyte(path: Path) -> None:
    with init_file(path) as file:
        assert file["image_token_features"].chunks == (1, 729, 1152)
        assert file["image_features"].chunks == (455, 1152)


def test_the_sizes_of_an_existing_file_are_compared(path: Path) -> None:
    init_file(path, 6, 9).close()

    with pytest.raises(CcassetsError, match="holds D = 6 and T_img = 9; expected 8 and 9"):
        init_file(path, 8, 9)
    with init_file(path) as file:
        assert file.attrs["D"] == 6


def test_metadata_that_differs_is_refused_and_not_written_over(path: Path) -> None:
    with init_file(path, 6, 9, {**LISTS, "dataset": "one"}) as file:
        write_template(file, "concept_prompts_t01", ["深 cell", "pale cell"], np.ones((2, 6)))

    for changed in ({"concept_texts": ["深"]}, {"dataset": "two"}):
        with pytest.raises(CcassetsError, match="clear_all_templates"):
            init_file(path, metadata={**LISTS, **changed})
    with init_file(path, metadata=LISTS) as file:
        assert json.loads(file.attrs["concept_texts"]) == ["深", "pale"]
        assert file.attrs["dataset"] == '"one"'


def test_lists_may_change_while_there_is_no_template(path: Path) -> None:
    init_file(path, 6, 9, LISTS).close()

    with init_file(path, metadata={"concept_texts": ["other"]}) as file:
        assert json.loads(file.attrs["concept_texts"]) == ["other"]


def test_attributes_of_the_format_are_no_metadata(path: Path) -> None:
    with pytest.raises(CcassetsError, match="belongs to the format"):
        init_file(path, metadata={"split_counts": {"train": 3}})


def test_one_writer_at_a_time(path: Path) -> None:
    with init_file(path, 6, 9), pytest.raises(CcassetsError, match="one writer at a time"):
        init_file(path)
    script = f"from ccassets.h5 import init_file; init_file({str(path)!r})"
    with init_file(path):
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "StorageError" in other.stderr
    assert "wait until that run has ended" in other.stderr
    init_file(path).close()


def test_a_forked_process_does_not_keep_the_lock(path: Path) -> None:
    file = init_file(path, 6, 9)
    append_batch(file, **rows(0), split_names="train")
    here, there = os.pipe()
    child = os.fork()  # as a data loader makes its workers
    if child == 0:
        os.write(there, b"!")
        signal.pause()
    os.read(here, 1)
    try:
        file.close()
        with init_file(path) as again:
            assert len(again["ids"]) == 4
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_another_kind_of_file_is_left_alone(path: Path) -> None:
    path.write_bytes(b"no HDF5 at all")

    with pytest.raises(CcassetsError, match="cannot be opened as HDF5"):
        init_file(path)
    assert path.read_bytes() == b"no HDF5 at all"
    with pytest.raises(CcassetsError, match="No such file or directory"):
        init_file(path.parent / "no folder" / "file.h5")
    with pytest.raises(CcassetsError, match="t_img of 0 or more"):
        init_file(path.parent / "new.h5", 6, -1)
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_data_set_of_an_old_file_gets_right_values(tmp_path: Path) -> None:
    path = Path(shutil.copy(LEGACY / "legacy_good.h5", tmp_path / "old.h5"))
    with h5py.File(path, "r+") as file:
        for name in ("ids", "labels"):
            del file[name]

    with init_file(path) as file:
        assert file["ids"][:].tolist() == list(range(70))
        assert not file["labels"][:].any()
        assert json.loads(file.attrs["provenance"])["dataset"]["labels"] == "none"

    with h5py.File(path, "r+") as file:
        del file["image_token_features"]
    with pytest.raises(CcassetsError, match="has lost /image_token_features"):
        init_file(path)  # the original added token features that were all zero
    with h5py.File(path) as file:
        assert "image_token_features" not in file


def test_a_file_that_lost_its_splits_gets_them_back_from_the_counts(tmp_path: Path) -> None:
    path = Path(shutil.copy(LEGACY / "legacy_good.h5", tmp_path / "old.h5"))
    with h5py.File(path, "r+") as file:
        before = file["split"][:].tolist()
        del file["split"]

    with init_file(path) as file:
        assert file["split"][:].tolist() == before


def test_counts_of_other_rows_give_no_splits_back(tmp_path: Path) -> None:
    path = Path(shutil.copy(LEGACY / "legacy_good.h5", tmp_path / "old.h5"))
    with h5py.File(path, "r+") as file:
        del file["split"]
        file.attrs["split_counts"] = json.dumps({"train": 36, "val": 20})

    with pytest.raises(CcassetsError, match=r"has lost /split.*holds 70 rows.*of 56"):
        init_file(path)


def test_a_file_that_lost_its_labels_says_so(path: Path) -> None:
    with init_file(path, 6, 9) as file:
        append_batch(file, **rows(0), split_names="train", labels=[1, 0, 1, 0])
        del file["labels"]

    with pytest.raises(CcassetsError, match=r"has lost /labels, those of \['train'\]"):
        init_file(path)


def test_rows_that_some_data_sets_lack_are_cut_off_with_a_warning(tmp_path: Path) -> None:
    path = Path(shutil.copy(LEGACY / "legacy_partial.h5", tmp_path / "torn.h5"))
    with h5py.File(path, "r+") as file:
        for name in ("image_features", "image_token_features", "ids"):
            file[name].resize(52, axis=0)

    with pytest.warns(UserWarning, match="cut to 44 whole rows"):
        file = init_file(path)
    with file:
        assert {len(file[name]) for name in ("image_features", "image_token_features", "ids", "labels", "split")} == {
            44
        }
        assert json.loads(file.attrs["split_counts"]) == {"train": 36, "val": 8}


@pytest.mark.parametrize("name", ["legacy_duplicated", "torn"])
def test_doubled_and_torn_rows_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "broken.h5"
    if name == "torn":
        shutil.copy(LEGACY / "legacy_partial.h5", path)
        with h5py.File(path, "r+") as file:
            for dataset in ("image_features", "image_token_features", "ids", "labels", "split"):
                file[dataset].resize(48, axis=0)
    else:
        shutil.copy(LEGACY / f"{name}.h5", path)
    before = path.read_bytes()

    with pytest.raises(CcassetsError, match="adopt --repair"):
        init_file(path)
    assert path.read_bytes() == before


def test_a_file_left_open_is_whole_when_the_program_ends(path: Path) -> None:
    script = (
        "import numpy as np; from ccassets.h5 import init_file, append_batch\n"
        f"file = init_file({str(path)!r}, 6, 9); datasets = [file['ids']]\n"
        "append_batch(file, np.ones((2, 6)), np.ones((2, 9, 6)), np.arange(2), 'train')\n"
        "file.attrs['note'] = 'written last'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

    with h5py.File(path) as file:
        assert len(file["ids"]) == 2
        assert file.attrs["note"] == "written last"


# --- appending ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 0]}, "labels: expected one for each of 4 rows"),
        ({"labels": np.zeros((4, 3))}, "label matrix"),
        ({"labels": [0, 1, -1, 0]}, "pass None"),
        ({"labels": [0, 1, 2, 0]}, r"expected 0 to 1 \(label_texts\), found 2"),
        ({"labels": [0, 1, 0.5, 0]}, "whole numbers"),
        ({"split_names": ["train"] * 3}, "split_names: expected one for each of 4 rows"),
        ({"split_names": ["train", "train", "", "train"]}, "'' is not a name for a split"),
        ({"split_names": ["train", "val", "val", "train"]}, "'train' has 5 rows already"),
        ({"split_names": "first"}, "'first' has 2 rows already, and rows of 'train' follow them"),
        ({"ids": np.arange(4)}, "ids: expected every row's own number, 6 to 9"),
        ({"image_feats": np.ones((4, 7))}, r"expected numbers of shape \(B, 6\)"),
        ({"image_token_feats": np.ones((4, 8, 6))}, r"expected numbers of shape \(B, 9, 6\)"),
        ({"image_token_feats": np.ones((3, 9, 6))}, "image_token_feats: expected 4 rows"),
        ({"image_token_feats": None}, "image_token_feats: expected numbers of shape"),
        ({"image_feats": np.full((4, 6), np.nan)}, "row 0 of the batch holds values that are not finite"),
        ({"image_token_feats": np.where(np.arange(216).reshape(4, 9, 6) == 150, 7e4, 1)}, "row 2 of the batch"),
    ],
    ids=lambda value: str(value)[:40].replace("\n", " "),
)
def test_a_refused_batch_changes_nothing(path: Path, changes: dict[str, Any], message: str) -> None:
    with init_file(path, 6, 9, LISTS) as file:
        append_batch(file, **rows(0, 2), split_names="first", labels=[0, 1])
        append_batch(file, **rows(2), split_names="train", labels=[0, 1, 1, 1])
        before = {name: file[name][:] for name in ("image_features", "split", "labels")}
        with pytest.raises(CcassetsError, match=message) as caught:
            append_batch(file, **{**rows(6), "split_names": "train", "labels": [0, 0, 1, 1], **changes})
        assert isinstance(caught.value, ValueError)
        for name, values in before.items():
            np.testing.assert_array_equal(file[name][:], values)
        assert json.loads(file.attrs["split_counts"]) == {"first": 2, "train": 4}
        append_batch(file, **rows(6), split_names="train", labels=[0, 0, 1, 1])
        assert json.loads(file.attrs["split_counts"]) == {"first": 2, "train": 8}


def test_missing_labels_are_zero_and_recorded(path: Path) -> None:
    with init_file(path, 6, 9) as file:
        append_batch(file, **rows(0), labels=None)
        append_batch(file, **rows(4), split_names=None)
        assert file["labels"][:].tolist() == [0] * 8
        assert file["split"][0] == b"unspecified"
        with pytest.raises(CcassetsError, match="a stored 0 would be ambiguous"):
            append_batch(file, **rows(8), labels=[1, 1, 1, 1])
    with open_database(path) as database:
        assert database.provenance is not None
        assert database.provenance["dataset"]["labels"] == "none"


def test_tensors_of_lower_precision_are_taken(path: Path) -> None:
    import torch

    batch = rows(0)
    with init_file(path, 6, 9) as file:
        append_batch(
            file,
            torch.tensor(batch["image_feats"], dtype=torch.bfloat16, requires_grad=True),
            torch.tensor(batch["image_token_feats"]).half(),
            torch.arange(4),
            ["val"] * 4,
            torch.zeros(4, 1),
        )
        np.testing.assert_array_equal(file["image_token_features"][:], batch["image_token_feats"].astype(np.float16))


def test_an_interrupted_batch_is_not_written_at_closing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = h5py.Dataset.__setitem__

    def interrupted(self: h5py.Dataset, key: Any, value: Any) -> None:
        if self.name == "/labels" and len(self) > 4:
            raise KeyboardInterrupt
        plain(self, key, value)

    with init_file(path, 6, 9) as file:
        append_batch(file, **rows(0), split_names="train")
        monkeypatch.setattr(h5py.Dataset, "__setitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            append_batch(file, **rows(4), split_names="train")
        monkeypatch.undo()

    with init_file(path) as file:
        assert {len(file[name]) for name in ("image_features", "image_token_features", "ids", "labels", "split")} == {4}
        assert json.loads(file.attrs["split_counts"]) == {"train": 4}


def test_a_full_disk_is_told_and_the_file_stays_whole(path: Path) -> None:
    import resource

    with init_file(path, 6, 9) as file:
        append_batch(file, **rows(0), split_names="train")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = contents(path)
    try:
        file = init_file(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100_000, limits[1]))
        stored = 4
        with pytest.raises(CcassetsError, match="could not be written"):  # noqa: PT012
            while True:
                append_batch(file, **rows(stored, 500), split_names="train")
                stored += 500
        assert not file  # closed: nothing can be appended after rows that are not there
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    with init_file(path) as file:
        assert json.loads(file.attrs["split_counts"]) == {"train": stored}
        append_batch(file, **rows(stored), split_names="train")
    after = contents(path)
    assert len(after["split"]) == stored + 4
    np.testing.assert_array_equal(after["image_features"][:4], before["image_features"])


def test_a_long_list_of_splits_does_not_swell_the_file(path: Path) -> None:
    names = [f"LIDC-IDRI-{number:04d}_0" for number in range(60)]
    with init_file(path, 6, 9) as file:
        for row, name in enumerate(names):
            append_batch(file, **rows(row, 1), split_names=name)
    with open_database(path) as database:
        assert list(database.splits) == names
        data = sum(item.id.get_storage_size() for item in database.file.values() if isinstance(item, h5py.Dataset))
    assert path.stat().st_size < data + 100_000


# --- kills --------------------------------------------------------------------------------------------


def killed_at(point: int, work: Callable[[], None]) -> bool:
    """Run `work` in a child, killed at its `point`-th change of a file with half of the write done; whether it was."""
    child = os.fork()
    if child == 0:
        done = 0

        def counting(plain: Callable[..., Any], half: bool) -> Callable[..., Any]:
            def call(fd: int, *arguments: Any) -> Any:
                nonlocal done
                if done == point:
                    if half:
                        plain(fd, memoryview(arguments[0])[: len(arguments[0]) // 2], *arguments[1:])
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1
                return plain(fd, *arguments)

            return call

        try:
            os.pwrite = counting(os.pwrite, half=True)
            os.ftruncate = counting(os.ftruncate, half=False)
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_kill_at_any_write_neither_loses_nor_doubles_rows(tmp_path: Path, path: Path) -> None:
    def append(first: int, split: str) -> None:
        with init_file(path, 6, 9) as file:
            append_batch(file, **rows(first), split_names=split, labels=[1, 0, 1, 0])

    append(0, "train")
    append(4, "train")
    whole = contents(path)
    start = tmp_path / "start"
    shutil.copy(path, start)
    append(8, "val")
    further = contents(path)

    recovered = set()
    for point in range(200):
        path.unlink(missing_ok=True)
        shutil.copy(start, path)
        journal._journal(path).unlink(missing_ok=True)
        if not killed_at(point, lambda: append(8, "val")):
            break
        init_file(path).close()
        after = contents(path)
        count = len(after["ids"])
        recovered.add(count)
        assert_same(after, further if count == 12 else whole)
        with h5py.File(path) as file:
            expected = {"train": 8, "val": 4} if count == 12 else {"train": 8}
            assert json.loads(file.attrs["split_counts"]) == expected
    else:
        pytest.fail("the append never ended")
    assert point > 15
    assert recovered == {8, 12}


@pytest.mark.slow
def test_a_power_cut_at_any_write_leaves_what_was_flushed(tmp_path: Path) -> None:
    def work(root: Path, *, template: bool = True) -> None:
        with init_file(root / "a.h5", 6, 9) as file:
            append_batch(file, **rows(len(file["ids"])), split_names="train", labels=[1, 0, 1, 0])
            if template:  # Which makes the file longer; a batch finds its place in it.
                write_template(
                    file, "wide", [str(row) for row in range(64)], np.full((64, 6), 0.25), np.ones((64, 9, 6))
                )

    start = tmp_path / "start"
    start.mkdir()
    work(start, template=False)
    states = {4: contents(start / "a.h5")}
    for template in (False, True):
        after = shutil.copytree(start, tmp_path / f"after-{template}")
        work(after, template=template)
        states[8 + template] = contents(after / "a.h5")

    recovered = set()
    for point in range(200):
        root, record = shutil.copytree(start, tmp_path / f"root-{point}"), tmp_path / f"synced-{point}"
        before = Disk.of(root)
        killed = killed_at(point, lambda root=root, record=record: (SyncRecord(root, record), work(root)))
        for number in range(3):
            image = tmp_path / f"image-{point}-{number}"
            cut_power(root, image, before.synced(record), np.random.default_rng([point, number]))
            init_file(image / "a.h5").close()
            after = contents(image / "a.h5")
            state = len(after["ids"]) + ("templates/wide/texts" in after)
            assert_same(after, states[state])
            assert killed or state == 9, "what was closed is on the disk"
            recovered.add(state)
        if not killed:
            break
    assert recovered == set(states)


def test_a_kill_while_a_file_is_created_leaves_one_that_can_be_created(path: Path) -> None:
    for point in range(100):
        path.unlink(missing_ok=True)
        if not killed_at(point, lambda: init_file(path, 6, 9, LISTS).close()):
            break
        with init_file(path, 6, 9, LISTS) as file:
            append_batch(file, **rows(0), split_names="train")
    assert point > 3


def test_killed_processes_resume_to_the_same_bits(tmp_path: Path, path: Path) -> None:
    total = 400
    script = tmp_path / "append.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from ccassets.h5 import append_batch, init_file\n"
        "from ccassets_tests.h5.batches import rows\n"
        "with init_file(sys.argv[1], 6, 9) as file:\n"
        "    print('started', flush=True)\n"
        f"    while len(file['ids']) < {total}:\n"
        "        first = len(file['ids'])\n"
        "        append_batch(file, **rows(first), split_names='train' if first < 200 else 'val')\n"
    )
    undisturbed = tmp_path / "undisturbed.h5"
    subprocess.run([sys.executable, script, undisturbed], check=True, stdout=subprocess.DEVNULL)

    moments = random.Random(0)
    reached = []
    for _ in range(6):
        process = subprocess.Popen([sys.executable, script, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with init_file(path) as file:
            reached.append(len(file["ids"]))
    subprocess.run([sys.executable, script, path], check=True, stdout=subprocess.DEVNULL)

    assert reached == sorted(reached)
    assert_same(contents(path), contents(undisturbed))


def test_a_journal_of_another_file_is_not_applied(tmp_path: Path, path: Path) -> None:
    with init_file(path, 6, 9) as file:
        append_batch(file, **rows(0), split_names="train")
    start = Path(shutil.copy(path, tmp_path / "start"))

    def append() -> None:
        with init_file(path) as file:
            append_batch(file, **rows(4), split_names="train")

    for point in range(200):
        shutil.copy(start, path)
        if killed_at(point, append) and journal._journal(path).exists() and path.read_bytes() != start.read_bytes():
            break
    left = journal._journal(path).read_bytes()
    other = tmp_path / "other.h5"
    with init_file(other, 6, 9) as file:
        append_batch(file, **rows(0, 1), split_names="other")
    expected = other.read_bytes()
    journal._journal(other).write_bytes(left)

    init_file(other).close()

    assert other.read_bytes() == expected
    copy = Path(shutil.copy(path, tmp_path / "copied.h5"))  # the file itself is completed wherever it was moved
    journal._journal(copy).write_bytes(left)
    with init_file(copy) as file:
        assert len(file["ids"]) == 8


# --- templates and parameters -------------------------------------------------------------------------


def test_a_template_holds_what_the_format_asks_for(path: Path) -> None:
    features, tokens = np.eye(2, 6), np.arange(36).reshape(2, 3, 6)
    with init_file(path, 6, 9) as file:
        write_template(file, "my_template", ["圆形细胞核", "a"], features, tokens)
        write_template(file, "other", ("a",), features[:1], input_ids=[[2, 7, 3]], attention_mask=[[1, 1, 1]])
        group = file["templates/my_template"]
        assert {name: group.attrs[name] for name in ("K", "D", "T_txt")} == {"K": 2, "D": 6, "T_txt": 3}
        assert file["templates/other"].attrs["T_txt"] == -1
        # sha256 of "a" and a zero byte, as the format states it
        assert (
            file["templates/other"].attrs["texts_hash"].startswith("ffe9aaeaa2a2d5048174df0b80599ef0197ec024c4b051bc")
        )
    with open_database(path) as database:
        template = database.templates["my_template"]
        assert template.texts == ["圆形细胞核", "a"]
        np.testing.assert_array_equal(template.text_features, features.astype(np.float32), strict=True)
        np.testing.assert_array_equal(template.text_token_features, tokens.astype(np.float32), strict=True)
        assert database.templates["other"].input_ids is not None
        assert database.templates["other"].text_token_features is None


@pytest.mark.parametrize(
    ("template_id", "texts", "arrays", "message"),
    [
        ("t", ["a", "b", "c"], [np.ones((2, 6))], r"text_features: expected shape \(3, 6\)"),
        ("t", ["a", "b"], [np.ones((2, 7))], r"text_features: expected shape \(2, 6\)"),
        ("t", ["a", "b"], [np.ones((2, 6)), np.ones((3, 4, 6))], r"text_token_features: expected shape \(2, T, 6\)"),
        ("t", ["a", "b"], [np.full((2, 6), np.inf)], "expected finite numbers"),
        ("t", "ab", [np.ones((2, 6))], "expected a list of prompts"),
        ("a/b", ["a"], [np.ones((1, 6))], "not a name for a template"),
    ],
)
def test_a_refused_template_leaves_the_old_one(
    path: Path, template_id: str, texts: Any, arrays: list[Any], message: str
) -> None:
    with init_file(path, 6, 9) as file:
        write_template(file, "t", ["old"], np.ones((1, 6)))
        with pytest.raises(CcassetsError, match=message):
            write_template(file, template_id, texts, *arrays)
        assert list(file["templates"]) == ["t"]
        assert file["templates/t/texts"][0] == b"old"


def test_an_equal_template_is_not_written_again(path: Path) -> None:
    with init_file(path, 6, 9) as file:
        write_template(file, "t", ["one"], np.ones((1, 6)))
        file["templates/t"].attrs["created_at"] = "before"
        write_template(file, "t", ["one"], np.ones((1, 6)))
        assert file["templates/t"].attrs["created_at"] == "before"
        write_template(file, "t", ["two"], np.ones((1, 6)))
        assert file["templates/t"].attrs["created_at"] != "before"


def test_scales_are_logarithms_and_their_multipliers_are_given(path: Path) -> None:
    published = {
        "logit_scale": 4.570647716522217,
        "logit_bias": -11.16147232055664,
        "concept_logit_scale": 4.511484146118164,
        "concept_logit_bias": -11.0343017578125,
    }
    with init_file(path, 6, 9) as file:
        assert load_model_params(file) == {}
        save_model_params(file, **published)
        parameters = load_model_params(file)
        assert {name: parameters[name] for name in published} == published
        assert parameters["logit_multiplier"] == pytest.approx(96.607, abs=1e-3)
        assert parameters["concept_logit_multiplier"] == pytest.approx(91.057, abs=1e-3)
        assert file.attrs["logit_scale_space"] == "log"
        save_model_params(file, **parameters)  # what is loaded can be stored
        assert load_model_params(file) == parameters
        save_model_params(file, logit_multiplier=100.0)
        assert load_model_params(file)["logit_scale"] == pytest.approx(np.log(100))
        for wrong in ({"logit_scale": 4.5, "logit_multiplier": 4.5}, {"logit_bias": float("nan")}):
            with pytest.raises(CcassetsError):
                save_model_params(file, **wrong)
    with h5py.File(LEGACY / "legacy_good.h5") as file:
        assert load_model_params(file)["logit_multiplier"] == pytest.approx(96.607, abs=1e-3)
