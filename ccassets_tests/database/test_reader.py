"""The reader: selections, templates, workers of a data loader, old files, and files that would lead elsewhere."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ccassets.database.hdf5 import iter_blocks, loaded, take_rows
from ccassets.database.reader import Database, open_database
from ccassets.database.writer import FileContent, TemplateContent, new_file
from ccassets.errors import DatabaseError
from ccassets_tests.campaigns.forks import Fork
from ccassets_tests.campaigns.refusals import AVAILABLE, NO_ADVICE, READ_FAULTS
from ccassets_tests.database.made_files import DIM, SPLITS, TOKENS, unit_rows, write_database, write_template_part
from ccassets_tests.made_studies import DATA

LEGACY = DATA / "legacy"
ROW = np.array([3])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_database(tmp_path / "a.h5")


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    with open_database(path) as opened:
        yield opened


# --- what is in it -----------------------------------------------------------------------------------


def test_a_database_tells_what_it_holds(database: Database) -> None:
    assert len(database) == 20
    assert (database.dim, database.token_count, database.profile) == (DIM, TOKENS, "database")
    assert database.splits == {"train": slice(0, 9), "val": slice(9, 14), "test": slice(14, 20)}
    assert list(database.splits) == list(SPLITS)
    assert database.ids.tolist() == list(range(20))
    assert database.split[9] == "val"
    assert database.keys[0] == "train/bild-0-细胞.png"
    assert database.groups[2] == "train patient 1"
    assert repr(database) == "Database('a.h5', rows=20, dim=12, token_count=4)"


def test_logit_scales_are_logarithms_and_multipliers_their_exponentials(database: Database) -> None:
    assert (database.logit_scale, database.logit_bias) == (4.5, -11.1)
    assert (database.concept_logit_scale, database.concept_logit_bias) == (4.6, -11.0)
    assert database.logit_multiplier == pytest.approx(90.0171, abs=1e-4)
    assert database.concept_logit_multiplier == pytest.approx(99.4843, abs=1e-4)


def test_arrays_are_mapped_and_cannot_be_written_to(database: Database) -> None:
    assert isinstance(database.image_token_features, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        database.image_features[0] = 0


def test_mapped_arrays_stay_usable_when_the_file_is_closed(path: Path) -> None:
    with open_database(path) as database:
        features = database.image_features
        expected = database.file["image_features"][...]

    assert np.array_equal(features, expected)


def test_a_closed_file_can_be_written_to_while_its_mapped_arrays_are_in_use(path: Path) -> None:
    with open_database(path) as database:
        features = database.image_features

    with h5py.File(path, "r+") as file:
        assert np.array_equal(file["image_features"][...], features)


@pytest.mark.parametrize(
    "view",
    [
        lambda values: values,
        lambda values: values[3:9][1:4],
        lambda values: np.asarray(values)[7:],
        lambda values: values.reshape(-1, DIM)[5:11],
        lambda values: values[2:5].view(np.uint8),
        lambda values: values[:0],
    ],
)
def test_any_part_of_a_mapped_array_is_read_from_the_file_it_was_mapped_from(
    tmp_path: Path, path: Path, view: Callable[[Any], Any]
) -> None:
    with open_database(path) as database:
        part = view(database.image_token_features)
        expected = view(database.file["image_token_features"][...])
    write_database(tmp_path / "other.h5", {"train": 20}).replace(path)

    with loaded(part) as read:
        assert np.array_equal(read.view(np.uint8), expected.view(np.uint8))
        assert (read.shape, read.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(part.view(np.uint8), expected.view(np.uint8))


def test_what_is_not_mapped_or_not_in_one_piece_is_not_read_again(database: Database) -> None:
    tokens = database.image_token_features
    for values in (np.ones((2, 3), np.float16), tokens[[0, 2]], tokens[:, 0], np.memmap(database.path, np.uint8, "r")):
        with loaded(values) as held:
            assert held is values


def test_a_mapped_array_that_is_gone_leaves_no_open_file(path: Path) -> None:
    gc.collect()  # What earlier tests left.
    before = set(Path("/dev/fd").iterdir())
    for _ in range(3):
        with open_database(path) as database, loaded(database.image_features[:2]):
            pass
        del database
    gc.collect()
    assert set(Path("/dev/fd").iterdir()) == before


def test_a_file_that_is_cut_off_while_it_is_open_is_named(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5", dim=1024)
    with open_database(path) as database:
        features = database.image_features
        os.truncate(path, database.byte_range("image_features")[0] + 1000)
        with (
            pytest.raises(DatabaseError, match=r"a\.h5: /image_features cannot be read \(the file ends at byte \d+"),
            loaded(features),
        ):
            pass


@pytest.mark.parametrize("read", [lambda values: list(iter_blocks(values)), lambda values: take_rows(values, ROW)])
def test_no_way_to_read_rows_of_a_file_that_was_cut_off_ends_the_process(
    tmp_path: Path, read: Callable[[Any], Any]
) -> None:
    path = write_database(tmp_path / "a.h5", dim=1024)
    with open_database(path) as database:
        features = database.image_features
        os.truncate(path, 4096)
        with pytest.raises(DatabaseError, match=r"/image_features cannot be read \(the file ends at byte 4096"):
            read(features)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.rename(path.with_name("b.h5"))])
def test_a_closed_database_is_not_locked_by_its_arrays(path: Path, change: Callable[[Path], Any]) -> None:
    other = path.with_name("other name.h5")
    other.hardlink_to(path)
    with open_database(path) as database:
        change(path)
        features = database.image_features
    assert len(features) == 20
    with h5py.File(other, "r+"):
        pass


@pytest.mark.skipif(not AVAILABLE, reason="the kernel cannot be asked to refuse")
def test_a_disk_that_fails_under_a_mapped_array_is_an_error(path: Path) -> None:
    fault = next(fault for fault in READ_FAULTS if fault.name == "EIO while rows are read")

    def read() -> dict[str, object]:
        with open_database(path) as database:
            features = database.image_features
            fault.start()
            with loaded(features) as rows:
                return {"rows": len(rows)}

    code, answer = Fork(read).end()
    assert code == 1, answer
    assert answer["sentence"].startswith(f"{path}: /image_features cannot be read: Input/output error.")


@pytest.mark.skipif(not AVAILABLE, reason="the kernel cannot be asked to refuse")
def test_a_system_that_cannot_map_pages_ahead_gives_a_copy(path: Path) -> None:
    def read() -> dict[str, object]:
        with open_database(path) as database:
            features = database.image_features
            NO_ADVICE.start()
            with loaded(features[3:9]) as rows:
                return {"equal": np.array_equal(rows, features[3:9]), "copied": not np.may_share_memory(rows, features)}

    assert Fork(read).end() == (0, {"equal": True, "copied": True})


def test_templates_give_their_arrays_and_attributes(database: Database) -> None:
    assert list(database.templates) == [
        *(f"concept_prompts_t0{number}" for number in (1, 2, 3)),
        "free_text",
        *(f"label_prompts_t0{number}" for number in (1, 2)),
    ]
    template = database.templates["concept_prompts_t01"]
    assert template.texts == ["a cell with round nucleus", "a cell with 圆形细胞核", "a cell with granules"]
    assert template.text_features.shape == (3, DIM)
    assert template.text_token_features.shape == (3, 6, DIM)
    assert template.input_ids.shape == template.attention_mask.shape == (3, 6)
    assert template.subject_span.shape == (3, 2)
    assert template.attributes["K"] == 3
    assert repr(template) == "Template('concept_prompts_t01', K=3)"


def test_a_template_part_is_read_like_a_database_without_rows(tmp_path: Path) -> None:
    with open_database(write_template_part(tmp_path / "a.h5")) as part:
        assert (len(part), part.dim, part.token_count) == (0, DIM, 0)
        assert list(part.templates) == ["concept_prompts_t01"]


def test_a_split_without_rows_is_there_and_empty(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5", {"train": 3, "val": 0, "test": 2})) as database:
        assert dict(database.splits) == {"train": slice(0, 3), "test": slice(3, 5), "val": slice(5, 5)}
        assert len(database.select("val")) == 0


# --- selections --------------------------------------------------------------------------------------

CHOICES: list[Any] = [
    None,
    3,
    -1,
    np.int64(2),
    [],
    (),
    [4, 0, 4, 4, 1],
    [-1, 0, -9],
    (1, 2),
    range(2, 8, 3),
    slice(None, None, -1),
    slice(-3, None),
    slice(5, 2),
    np.array([8, 8, 0], np.uint8),
    np.arange(9) % 2 == 0,
]


@pytest.mark.parametrize("rows", CHOICES, ids=repr)
@pytest.mark.parametrize("file", ["a.h5", "legacy_good.h5"])
def test_any_selection_is_what_numpy_gives(path: Path, file: str, rows: Any) -> None:
    with open_database(path if file == "a.h5" else LEGACY / file) as database:
        start = database.splits["train"].start
        train = np.arange(start, database.splits["train"].stop)
        if isinstance(rows, np.ndarray) and rows.dtype == bool:
            rows = np.resize(rows, len(train))
        chosen = (
            train if rows is None else np.atleast_1d(train[list(rows) if isinstance(rows, (tuple, range)) else rows])
        )
        chosen = chosen.astype(np.int64)

        selection = database.select("train", rows)

        assert len(selection) == len(chosen)
        assert np.array_equal(selection.rows, chosen)
        assert np.array_equal(selection.image_features, database.file["image_features"][...][chosen])
        assert np.array_equal(selection.image_token_features, database.file["image_token_features"][...][chosen])
        assert np.array_equal(selection.labels, database.file["labels"][...][chosen])
        assert np.array_equal(selection.ids, chosen)
        assert selection.split.tolist() == ["train"] * len(chosen)


def test_a_selection_of_a_later_split_counts_from_its_first_row(database: Database) -> None:
    assert database.select("test", [-1, 0]).ids.tolist() == [19, 14]
    assert database.select("test").ids.tolist() == list(range(14, 20))
    assert database.select(rows=[-1, 0]).ids.tolist() == [19, 0]
    assert database.select("val", 2).keys.tolist() == ["val/bild-11-细胞.png"]
    assert database.select("val", 2).groups.tolist() == ["val patient 5"]


@pytest.mark.parametrize("rows", [[5], [-6], 5, [0, 99], [0.5], np.ones(3, bool)], ids=repr)
def test_a_row_that_is_not_there_is_an_error_with_the_number_of_rows(database: Database, rows: Any) -> None:
    with pytest.raises(DatabaseError, match="'val' has 5 rows"):
        database.select("val", rows)


def test_an_unknown_split_lists_those_that_are_there(database: Database) -> None:
    with pytest.raises(DatabaseError, match=r"has no split 'valid'; it has \['train', 'val', 'test'\]"):
        database.select("valid")


def test_a_selection_is_a_copy_that_may_be_changed(database: Database) -> None:
    chosen = database.select("train", slice(0, 2)).image_features
    chosen[:] = 0

    assert database.image_features[:2].any(axis=1).all()


# --- concepts and labels -----------------------------------------------------------------------------


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_a_concepts_vector_is_the_mean_over_templates_and_synonyms_of_unit_length(database: Database) -> None:
    texts = [unit(database.templates[f"concept_prompts_t0{number}"].text_features) for number in (1, 2, 3)]
    nucleus = unit(np.stack([rows[row] for rows in texts for row in (0, 1)]).mean(axis=0))
    granules = unit(np.stack([rows[2] for rows in texts]).mean(axis=0))

    assert database.concepts == {"round nucleus": ("round nucleus", "圆形细胞核"), "granules": ("granules",)}
    features = database.concept_features()
    assert features.dtype == np.float32
    assert np.allclose(features, [nucleus, granules], atol=1e-6)
    assert np.allclose(database.concept_features(["granules", "round nucleus"]), features[::-1])
    one = database.concept_features(["granules"], templates=["concept_prompts_t02"])
    assert np.allclose(one, texts[1][2:], atol=1e-6)
    assert database.concept_features([]).shape == (0, DIM)


def test_features_that_are_not_of_unit_length_weigh_no_more_than_others(tmp_path: Path) -> None:
    features = unit_rows(np.random.default_rng(0), 2)
    templates = {
        f"concept_prompts_t0{number}": TemplateContent(
            texts=["a"], text_features=features[number : number + 1] * length
        )
        for number, length in ((0, 1), (1, 50))
    }
    attributes = {"concept_texts": ["a"]}
    with new_file(tmp_path / "a.h5", FileContent("database", DIM, 0, None, templates, attributes)):
        pass

    with open_database(tmp_path / "a.h5") as database:
        assert np.allclose(database.concept_features(), unit(features.mean(axis=0))[None], atol=1e-6)


def test_a_label_words_vector_is_the_mean_over_the_label_templates(database: Database) -> None:
    texts = [unit(database.templates[f"label_prompts_t0{number}"].text_features) for number in (1, 2)]

    assert np.allclose(database.label_features(), unit((texts[0] + texts[1]) / 2), atol=1e-6)
    one = database.label_features(["plättchen"], templates=["label_prompts_t02"])
    assert np.allclose(one, texts[1][1:2], atol=1e-6)


def test_a_single_text_is_a_list_of_one(database: Database) -> None:
    for features, word, template in (
        (database.concept_features, "granules", "concept_prompts_t02"),
        (database.label_features, "plättchen", "label_prompts_t02"),
    ):
        assert np.array_equal(features(word, template), features([word], [template]))
    with pytest.raises(DatabaseError, match=r"no concepts \['granule'\]"):
        database.concept_features("granule")


def test_a_path_may_be_a_text(path: Path) -> None:
    for database in (open_database(str(path)), Database(str(path))):
        with database:
            assert database.path == path


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda database: database.concept_features(["nucleus"]), r"has no concepts \['nucleus'\]; it has \['round"),
        (lambda database: database.concept_features(["圆形细胞核"]), "has no concepts"),
        (lambda database: database.label_features(["cell"]), r"has no label words \['cell'\]; it has \['basophil'"),
        (lambda database: database.concept_features(templates=["t01"]), r"has no templates \['t01'\]; it has"),
        (lambda database: database.concept_features(templates=[]), "has no templates"),
        (lambda database: database.concept_features(templates=["free_text"]), "free_text holds 2 prompts for 3 words"),
    ],
)
def test_what_the_vocabulary_does_not_have_is_named(
    database: Database, ask: Callable[[Database], Any], says: str
) -> None:
    with pytest.raises(DatabaseError, match=says):
        ask(database)


# --- elsewhere ---------------------------------------------------------------------------------------


def test_a_pickled_database_is_opened_again(database: Database) -> None:
    with pickle.loads(pickle.dumps(database)) as again:
        assert np.array_equal(again.image_features, database.image_features)
        assert again.path == database.path


def test_two_workers_of_a_data_loader_give_every_row_once_and_in_order(path: Path) -> None:
    from torch.utils.data import DataLoader

    with open_database(path) as database:
        dataset = database.torch_dataset("train", tokens=True)
        assert dataset[0][2] == database.labels[0]  # Opened here before the workers are made.
        loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork")
        features, tokens, labels = (np.concatenate(parts) for parts in zip(*loader, strict=True))

        assert len(dataset) == 9
        assert np.array_equal(features, database.image_features[:9])
        assert np.array_equal(tokens, database.image_token_features[:9])
        assert np.array_equal(labels, database.labels[:9])


def test_a_torch_data_set_without_tokens_gives_features_and_label(path: Path) -> None:
    with open_database(path) as database:
        features, label = database.torch_dataset()[19]
        assert np.array_equal(features, database.image_features[19])
        assert label == database.labels[19]
    with (
        open_database(write_database(path, tokens=0)) as without,
        pytest.raises(DatabaseError, match="without token features"),
    ):
        without.torch_dataset(tokens=True)


def test_a_torch_data_set_refuses_other_rows_that_were_published_meanwhile(path: Path) -> None:
    with open_database(path) as database:
        dataset = database.torch_dataset("test")
    write_database(path)
    assert len(pickle.loads(pickle.dumps(dataset))[0]) == 2  # The same rows again.

    write_database(path, {"train": 20, "test": 6})

    with pytest.raises(DatabaseError, match="was replaced by a file with other rows"):
        pickle.loads(pickle.dumps(dataset))[0]


def test_the_table_of_rows_has_a_row_for_each(database: Database) -> None:
    table = database.to_pandas()

    assert list(table.columns) == ["id", "key", "split", "label", "group"]
    assert table["split"].value_counts().to_dict() == dict(SPLITS)
    assert table.loc[9, "key"] == "val/bild-9-细胞.png"
    with open_database(LEGACY / "legacy_good.h5") as old:
        assert list(old.to_pandas().columns) == ["id", "split", "label"]


def test_reading_imports_neither_torch_nor_dagster(path: Path) -> None:
    code = (
        "import sys, ccassets\n"
        "with ccassets.open_database(sys.argv[1]) as database:\n"
        "    database.select('val', [0, -1]).image_token_features; database.concept_features()\n"
        "print(sorted({'torch', 'transformers', 'dagster', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


# --- files of the original scripts -------------------------------------------------------------------


def test_a_chunked_file_of_the_original_scripts_is_read(tmp_path: Path) -> None:
    with open_database(LEGACY / "legacy_good.h5") as old:
        assert (len(old), old.dim, old.token_count) == (70, 16, 9)
        assert dict(old.splits) == {"train": slice(0, 36), "val": slice(36, 56), "test": slice(56, 70)}
        assert (old.keys, old.groups, old.image_digest, old.provenance) == (None, None, None, None)
        assert (old.profile, old.attributes["dataset"]) == ("database", "bloodmnist")
        assert old.logit_multiplier == pytest.approx(96.607, abs=1e-3)
        assert len(old.concepts) == 15
        assert old.concept_features().shape == (15, 16)
        assert old.label_features().shape == (8, 16)
        assert isinstance(old.image_features, h5py.Dataset)
        assert old.torch_dataset("test", tokens=True)[3][1].shape == (9, 16)


def test_rows_of_a_split_that_do_not_stand_together_are_an_error(tmp_path: Path) -> None:
    with (
        open_database(LEGACY / "legacy_duplicated.h5") as doubled,
        pytest.raises(DatabaseError, match="the rows of split 'train' do not stand together"),
    ):
        doubled.select("train")


# --- files that are something else -------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_what_is_no_hdf5_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.h5").write_bytes(content)

    with pytest.raises(DatabaseError, match=r"a\.h5 (is not a file|cannot be opened as HDF5)"):
        open_database(tmp_path / "a.h5")


def test_a_truncated_file_is_refused_and_a_folder_too(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(DatabaseError, match="cut off"):
        open_database(path)
    with pytest.raises(DatabaseError, match="is not a file"):
        open_database(path.parent)


def secret(folder: Path) -> Path:
    """Another file that holds everything a database could ask for."""
    return write_database(folder / "secret.h5")


def replaced(path: Path, name: str, make: Callable[[h5py.Group, str], Any]) -> None:
    """Replace an object of a file by what `make` puts there."""
    with h5py.File(path, "r+") as file:
        parent, _, last = name.rpartition("/")
        group = file[parent] if parent else file
        if last in group:
            del group[last]
        make(group, last)


NAMES = [
    "image_features",
    "image_token_features",
    "labels",
    "split",
    "keys",
    "groups",
    "label_matrix",
    "image_digest",
    "feature_digest",
]


def everything(path: Path) -> None:
    """Ask a database for all it has."""
    with open_database(path) as database:
        for name in (*NAMES, "ids"):
            getattr(database, name)
        for template in database.templates.values():
            for name in ("texts", "text_features", "text_token_features", "input_ids", "subject_span"):
                getattr(template, name)


def virtual(target: Path) -> Callable[[h5py.Group, str], Any]:
    def make(group: h5py.Group, name: str) -> None:
        layout = h5py.VirtualLayout((20, DIM), "<f2")
        layout[...] = h5py.VirtualSource(target, "image_features", (20, DIM))
        group.create_virtual_dataset(name, layout)

    return make


@pytest.mark.parametrize("name", [*NAMES, "templates", "templates/free_text", "templates/free_text/texts"])
def test_links_that_lead_elsewhere_are_refused_wherever_they_stand(tmp_path: Path, path: Path, name: str) -> None:
    other = secret(tmp_path)
    for link in (h5py.ExternalLink(str(other), name), h5py.ExternalLink(str(other), "/"), h5py.SoftLink("/ids")):
        replaced(path, name, lambda group, last, link=link: group.__setitem__(last, link))

        with pytest.raises(DatabaseError, match=f"/{name} is a soft or external link"):
            everything(path)


def test_values_that_lie_in_other_files_are_refused(tmp_path: Path, path: Path) -> None:
    other = secret(tmp_path)
    outside = [(str(other), 0, 20 * DIM * 2)]
    makers: list[Callable[[h5py.Group, str], Any]] = [
        virtual(other),
        lambda group, name: group.create_dataset(name, (20, DIM), "<f2", external=outside),
    ]
    for make in makers:
        replaced(path, "image_features", make)

        with pytest.raises(DatabaseError, match="/image_features keeps its data in other files"):
            everything(path)


def test_strings_and_objects_where_numbers_belong_are_refused(path: Path) -> None:
    for values in (np.array(["a"] * 20, object), np.array([b"a"] * 20), np.zeros(20, [("a", "<f2")])):
        replaced(path, "image_features", lambda group, name, values=values: group.create_dataset(name, data=values))

        with pytest.raises(DatabaseError, match=r"/image_features: expected numbers, found dtype"):
            everything(path)


def test_a_group_where_a_data_set_belongs_is_refused_and_the_other_way_round(path: Path) -> None:
    replaced(path, "labels", lambda group, name: group.create_group(name))
    with pytest.raises(DatabaseError, match="/labels: expected a data set, found a group"):
        everything(path)

    replaced(path, "labels", lambda group, name: group.create_dataset(name, data=np.zeros(20, np.int64)))
    replaced(path, "templates/free_text", lambda group, name: group.create_dataset(name, data=1))
    with pytest.raises(DatabaseError, match="/templates/free_text: expected a group, found a data set"):
        everything(path)


@pytest.mark.parametrize("name", ["image_features", "ids", "labels", "split"])
def test_a_data_set_that_is_missing_is_named(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]

    with pytest.raises(DatabaseError, match=f"/{name} is missing"):
        everything(path)
