"""Tables of images: CSV and Parquet, labels as numbers or names, and every mistake named by row."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ccassets.errors import DatasetError
from ccassets.progress import silent
from ccassets.study.schema import TableConfig
from ccassets_tests.datasets.made_datasets import dataset_of, noise, save_folder

KEYS = ["p/c.png", "p/a.png", "p/b.png", "p/d.png"]
SPLITS = ["train", "test", "train", "test"]


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "cells", KEYS)


def table_of(folder: Path, text: str | pd.DataFrame, **options: object):
    """The data set of a table beside the images: CSV from text, Parquet from a frame."""
    if isinstance(text, str):
        file = folder / "cells.csv"
        file.write_text(text, encoding="utf-8")
    else:
        file = folder / "cells.parquet"
        text.to_parquet(file)
    options.setdefault("splits", ["train", "test"])
    return dataset_of(folder, kind="table", file=file, **options)


def lines(*labels: object, splits: list[str] = SPLITS) -> str:
    rows = [f"{key},{label},{split}\n" for key, label, split in zip(KEYS, labels, splits, strict=True)]
    return "path,label,split\n" + "".join(rows)


def test_rows_stay_in_the_order_of_the_file(cells: Path):
    dataset = table_of(cells, lines(3, 0, 1, 0))
    dataset.fetch(silent)
    rows = dataset.rows("train")
    assert (dataset.name, dataset.labelled, dataset.classes) == ("cells.csv", True, ())
    assert (rows.keys, rows.labels.tolist(), rows.groups) == (["p/c.png", "p/b.png"], [3, 1], None)
    assert rows.labels.dtype == np.int64
    assert dataset.rows("test").keys == ["p/a.png", "p/d.png"]
    assert np.array_equal(np.asarray(dataset.read("train", 1)), np.asarray(noise(2)))


def test_names_get_label_numbers_as_folders_do(cells: Path):
    names = lines("RBC", "WBC", "WBC", "RBC")
    assert table_of(cells, names).rows("train").labels.tolist() == [0, 1]
    assert table_of(cells, names, classes=["WBC", "RBC"]).rows("train").labels.tolist() == [1, 0]
    worded = table_of(cells, names, words=("wbc", "platelet", "rbc"))
    assert (worded.classes, worded.rows("train").labels.tolist()) == (("WBC", "platelet", "RBC"), [2, 0])
    with pytest.raises(DatasetError, match=r"\['WBC'\], which dataset.classes does not name"):
        table_of(cells, names, classes=["RBC"]).rows("train")
    grades = table_of(cells, lines("10.5", "2", "-1", "2"))
    assert (grades.classes, grades.rows("train").labels.tolist()) == (("-1", "2", "10.5"), [2, 0])


def test_parquet_says_the_same_as_csv(cells: Path):
    frame = pd.DataFrame(
        {
            "file": KEYS,
            "kind": pd.Categorical(["RBC", "WBC", "WBC", "RBC"]),
            "fold": [0, 1, 0, 1],
            "patient": [7, 8, 9, 7],
            "area": [0.5, 1.5, 2.5, 3.5],
        }
    )
    columns = {"path": "file", "label": "kind", "split": "fold", "group": "patient"}
    dataset = table_of(cells, frame, columns=columns, splits=["0", "1"])
    rows = dataset.rows("0")
    assert (rows.keys, rows.labels.tolist(), rows.groups) == (["p/c.png", "p/b.png"], [0, 1], ["7", "9"])


def test_groups_paths_and_splits_of_a_csv_stay_text(cells: Path):
    save_folder(cells, ["007"])
    dataset = table_of(cells, "path,label,split,patient\n007,1,01,08\n", columns={"group": "patient"}, splits=["01"])
    rows = dataset.rows("01")
    assert (rows.keys, rows.groups) == (["007"], ["08"])
    assert dataset.read("01", 0).size == (12, 9)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "gb18030"])
def test_delimiters_are_recognised_and_encodings_named(cells: Path, delimiter: str, encoding: str):
    word = "分叶核" if encoding == "gb18030" else "Zelle ä"
    text = "path , label,split\n" + lines(word, "b", "b", word).partition("\n")[2]
    (cells / "t.csv").write_bytes(text.replace(",", delimiter).encode(encoding))
    named = {} if encoding.startswith("utf-8") else {"encoding": encoding}
    dataset = dataset_of(cells, kind="table", file="t.csv", splits=["train"], **named)
    assert (dataset.rows("train").keys, dataset.classes) == (["p/c.png", "p/b.png"], tuple(sorted(["b", word])))


def test_an_encoding_that_is_none_is_an_error_of_the_study_and_the_default_is_in_no_digest(cells: Path):
    with pytest.raises(ValueError, match="no text encoding 'utf-9'"):
        dataset_of(cells, kind="table", file="t.csv", encoding="utf-9")
    assert "encoding" not in TableConfig(kind="table", file=Path("t.csv")).model_dump_json()
    assert "utf-16" in TableConfig(kind="table", file=Path("t.csv"), encoding="utf-16").model_dump_json()


def test_cells_may_be_quoted_and_hold_line_breaks(cells: Path):
    text = '\ufeffnote,path,label,split\n"two\nlines, and a comma",p/a.png,"a ""b""",train\n'
    dataset = table_of(cells, text, splits=["train"])
    assert (dataset.rows("train").keys, dataset.classes) == (["p/a.png"], ('a "b"',))


def findings(*cells: str, header: str = "path,split,oedema,nodule") -> str:
    rows = [f"{key},{split},{cell}\n" for key, split, cell in zip(KEYS, SPLITS, cells, strict=True)]
    return f"{header}\n" + "".join(rows)


SEVERAL = {"label": ["oedema", "nodule"]}


@pytest.mark.parametrize("cell", ["0,1", "0.0,1.0", "0,1.0"])
def test_several_columns_of_0_and_1_are_several_labels(cells: Path, cell: str):
    dataset = table_of(cells, findings("0,0", "1,1", cell, "1,0"), columns=SEVERAL)
    train, test = dataset.rows("train"), dataset.rows("test")
    assert (dataset.labelled, dataset.classes) == (True, ("oedema", "nodule"))
    assert train.label_matrix is not None
    assert test.label_matrix is not None
    assert (train.label_matrix.tolist(), train.label_matrix.dtype) == ([[0, 0], [0, 1]], np.uint8)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [0, 0])
    named = table_of(cells, findings("0,0", "1,1", cell, "1,0"), columns=SEVERAL, classes=["Oedema", "Nodule"])
    assert named.classes == ("Oedema", "Nodule")


def test_label_columns_of_a_parquet_file_may_be_truth_values(cells: Path):
    frame = pd.DataFrame({"path": KEYS, "split": SPLITS, "oedema": [False, True, True, False], "nodule": [0, 1, 0, 1]})
    rows = table_of(cells, frame, columns=SEVERAL).rows("test")
    assert rows.label_matrix is not None
    assert rows.label_matrix.tolist() == [[1, 1], [0, 1]]


def test_a_label_that_is_neither_0_nor_1_is_named_by_row(cells: Path):
    with pytest.raises(DatasetError, match=r"expected 0 or 1 .* row 3 has -1 under 'nodule' \(1 such cells\)"):
        table_of(cells, findings("0,0", "1,1", "0,-1", "1,0"), columns=SEVERAL).rows("train")
    with pytest.raises(DatasetError, match="column 'nodule' is empty in row 3"):
        table_of(cells, findings("0,0", "1,1", "0,", "1,0"), columns=SEVERAL).rows("train")
    with pytest.raises(DatasetError, match=r"must have each of the columns \['nodule'\] once"):
        table_of(cells, findings("0,0", "1,1", "0,1", "1,0", header="path,split,oedema,mass"), columns=SEVERAL).fetch(
            silent
        )
    with pytest.raises(DatasetError, match=r"a class for each of the 2 label columns; dataset\.classes names 1"):
        table_of(cells, findings("0,0", "1,1", "0,1", "1,0"), columns=SEVERAL, classes=["Oedema"]).rows("train")


def test_without_a_label_column_there_are_no_labels(cells: Path):
    text = "path,split\np/a.png,train\n"
    dataset = table_of(cells, text, splits=["train"])
    assert (dataset.labelled, dataset.classes, dataset.rows("train").labels.tolist()) == (False, (), [0])
    with pytest.raises(DatasetError, match=r"columns \['label'\] once; it has path, split"):
        table_of(cells, text, splits=["train"], columns={"label": "label"}).rows("train")


def test_the_root_may_be_another_folder_and_paths_below_it_absolute(cells: Path, tmp_path: Path):
    (tmp_path / "tables").mkdir()
    text = f"path,split\n./a.png,train\n{cells}/p/b.png,train\n"
    dataset = table_of(tmp_path / "tables", text, root=cells / "p", splits=["train"])
    assert dataset.rows("train").keys == ["a.png", "b.png"]
    outside = table_of(tmp_path / "tables", f"path,split\n{cells}/x.png,train\n", root=cells / "p", splits=["train"])
    with pytest.raises(DatasetError, match="absolute and not under"):
        outside.rows("train")


def test_rows_of_other_splits_are_passed_over(cells: Path):
    dataset = table_of(cells, lines("a", "b", "c", ""), splits=["train"], classes=["a", "c"])
    assert dataset.rows("train").labels.tolist() == [0, 1]


def test_rows_that_are_passed_over_are_counted_once(cells: Path, caplog: pytest.LogCaptureFixture):
    for _ in range(2):
        table_of(cells, lines(0, 1, 0, 1), splits=["train"]).rows("train")
    assert caplog.text.count("2 of 4 rows are ignored: column 'split' holds test, which") == 1


@pytest.mark.parametrize(
    ("written", "actual"),
    [
        ("p\\a.png", "p/a.png"),
        (r"C:\data\cells\p\a.png", "p/a.png"),
        ("p/A.PNG", "p/a.png"),
        ("P/a.png", "p/a.png"),
        ("p/ a.png", "p/a.png"),
        ("p/a\u0308.png", "p/ä.png"),
        ("p/é.png", "p/e\u0301.png"),
    ],
)
def test_a_file_of_almost_that_path_is_named(cells: Path, written: str, actual: str):
    save_folder(cells, [actual])
    alone = table_of(cells, f"path,split\n{written},train\n", splits=["train"])
    with pytest.raises(DatasetError, match=f"But {re.escape(repr(actual))} is there"):
        alone.rows("train")
    beside = table_of(cells, f"path,split\n{written},train\np/c.png,train\n", splits=["train"])
    with pytest.raises(DatasetError, match=f"no such file, but {re.escape(repr(actual))} is there"):
        beside.read("train", 0)


@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0", "\u3000", "\u200b", "\ufeff"])
def test_blanks_around_cells_lose_no_row(cells: Path, blank: str, caplog: pytest.LogCaptureFixture):
    splits = ["train", f"train{blank}", f"{blank}train", "test"]
    text = lines(f"RBC{blank}", "RBC", f"{blank}WBC", "WBC", splits=splits).replace("p/a.png", f"{blank}p/a.png")
    frame = pd.DataFrame({"path": KEYS, "label": ["RBC", f"RBC{blank}", "WBC", "WBC"], "split": splits})
    for content in (text, frame):
        caplog.clear()
        dataset = table_of(cells, content)
        rows = dataset.rows("train")
        assert (list(rows.keys), rows.labels.tolist()) == (["p/c.png", "p/a.png", "p/b.png"], [0, 0, 1])
        assert dataset.classes == ("RBC", "WBC")
        table_of(cells, content).rows("train")
        assert caplog.text.count("2 of 4 cells of column 'split' have blanks around them") == 1
    assert table_of(cells, lines(f" {3}", 0, "1 ", 0)).rows("train").labels.tolist() == [3, 1]


def test_blanks_around_the_cells_of_several_label_columns_lose_no_label(cells: Path):
    rows = [f"{key}, 1,0 ,{split}\n" for key, split in zip(KEYS, SPLITS, strict=True)]
    dataset = table_of(cells, "path,a,b,split\n" + "".join(rows), columns={"label": ["a", "b"]})
    assert dataset.rows("train").label_matrix.tolist() == [[1, 0], [1, 0]]


def test_blanks_in_the_name_of_a_file_stay(cells: Path):
    save_folder(cells, [" p/a .png "])
    assert table_of(cells, lines(0, 0, 0, 0).replace("p/a.png", " p/a .png ")).rows("test").keys[0] == " p/a .png "


def test_a_cell_of_blanks_is_empty(cells: Path):
    with pytest.raises(DatasetError, match="column 'split' is empty in row 2"):
        table_of(cells, lines(0, 1, 2, 3, splits=["train", " ", "train", "test"])).fetch(silent)


def test_a_split_without_rows_is_named_with_those_that_are_there(cells: Path):
    with pytest.raises(DatasetError, match=r"no rows of the splits \['val'\]; column 'split' holds test, train"):
        table_of(cells, lines(0, 0, 0, 0), splits=["train", "val"]).fetch(silent)


@pytest.mark.parametrize("labels", [(0, "", 1, ""), ("a", "", "b", "")])
def test_empty_cells_are_named_by_row(cells: Path, labels: tuple[object, ...]):
    with pytest.raises(DatasetError, match=r"column 'label' is empty in row 2, 4 \("):
        table_of(cells, lines(*labels)).rows("train")


def test_an_empty_cell_of_a_parquet_file_is_named_by_row(cells: Path):
    frame = pd.DataFrame({"path": KEYS, "label": ["a", None, "b", "a"], "split": SPLITS})
    with pytest.raises(DatasetError, match="column 'label' is empty in row 2"):
        table_of(cells, frame).rows("test")
    with pytest.raises(DatasetError, match="column 'label' holds double"):
        table_of(cells, frame.assign(label=[0, None, 1, 2])).rows("test")


def test_an_empty_split_cell_is_named_by_row(cells: Path):
    with pytest.raises(DatasetError, match="column 'split' is empty in row 3"):
        table_of(cells, lines(0, 0, 0, 0, splits=["train", "test", "", "test"])).rows("train")


def test_label_numbers_outside_the_list_are_named(cells: Path):
    with pytest.raises(DatasetError, match=r"must be 0 or more; row 3 has -1 \(1 such rows\)"):
        table_of(cells, lines(0, 0, -1, 0)).rows("train")
    with pytest.raises(DatasetError, match=r"must be 0 to 1, as dataset.classes has 2 names; row 3 has 2"):
        table_of(cells, lines(0, 0, 2, 0), classes=["a", "b"]).rows("train")


def test_an_image_twice_in_a_split_is_named(cells: Path):
    with pytest.raises(DatasetError, match=r"split 'train' names images twice: p/a\.png"):
        table_of(cells, "path,split\np/a.png,train\n./p/a.png,train\n", splits=["train"]).rows("train")


def test_a_wrong_root_is_told_from_a_missing_file(cells: Path):
    dataset = table_of(cells, "path,split\np/a.png,train\np/lost.png,train\n", splits=["train"])
    assert dataset.rows("train").fingerprints[1] == "missing"
    with pytest.raises(DatasetError, match="no such file"):
        dataset.read("train", 1)
    wrong = table_of(cells, "path,split\na.png,train\nb.png,train\n", splits=["train"])
    with pytest.raises(DatasetError, match=r"Not one of 2 image files is under .*the first is 'a\.png'"):
        wrong.rows("train")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"", "cannot be read as a table"),
        (
            "t.csv",
            b"path|split\na|train\n",
            r"columns \['path', 'split'\] once; it has path\|split.* semicolons or tabs",
        ),
        ("t.csv", b"path,split,path\na,train,b\n", r"columns \['path'\] once"),
        ("t.csv", b"path,split\na,train,3\n", "cannot be read as a table"),
        ("t.csv", b"path,split\n\xff,train\n", r"cannot be read as a table.* not utf-8: .* dataset\.encoding"),
        ("t.csv", "path,split\na,train\n".encode("utf-16"), r"not utf-8: name its encoding"),
        ("t.csv", b"path,split,label\na,train,99999999999999999999\n", "cannot be read as a table"),
        ("t.csv", b"path,split\n", r"no rows of the splits \['train'\]"),
        ("t.parquet", b"PAR1 not really", "cannot be read as a table"),
        ("t.xlsx", b"", "a table is a .csv, .tsv or .parquet file"),
    ],
)
def test_a_table_that_is_none_is_said_in_a_sentence(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=said):
        dataset_of(tmp_path, kind="table", file=name, splits=["train"]).fetch(silent)


def test_a_missing_table_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"t\.csv does not exist"):
        dataset_of(tmp_path, kind="table", file="t.csv").fetch(silent)
