"""Every access pattern of the original reader gives what plain h5py reading gives, and its faults are gone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ccassets import CcassetsError
from ccassets.h5 import (
    access_batch,
    access_sample_by_index,
    fetch_template_features,
    get_template_names,
    init_file,
    summarize_h5,
    validate_h5,
)
from ccassets_tests.h5.batches import LEGACY

GOOD = LEGACY / "legacy_good.h5"
SPLITS = {"train": slice(0, 36), "val": slice(36, 56), "test": slice(56, 70), "all": slice(0, 70)}
DATASETS = {"image": "image_features", "patches": "image_token_features", "label": "labels"}


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    with h5py.File(GOOD) as file:
        arrays = {name: file[name][:] for name in ("image_features", "image_token_features", "labels", "split", "ids")}
        for name, group in file["templates"].items():
            arrays[name] = {key: values[:] for key, values in group.items()}
    return arrays


@pytest.fixture
def own_copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(GOOD, tmp_path / "copy.h5"))


# --- rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "patches", "label"])
@pytest.mark.parametrize("split", ["train", "val", "test", "all"])
@pytest.mark.parametrize(
    "idx",
    [
        None,
        slice(0, 5),
        slice(3, None, 4),
        slice(None, None, -1),
        slice(9, 2, -3),
        slice(5, 5),
        [0, 2, 4, 13],
        [7, 1, 1, 0, 7],
        [-1, 0, -14],
        (3, 2),
        [],
        np.array([2, 0]),
        np.array([[0, 1], [3, 0]]),
    ],
    ids=str,
)
def test_any_order_of_rows_gives_what_numpy_gives(good: dict[str, Any], split: str, idx: Any, kind: str) -> None:
    rows = good[DATASETS[kind]][SPLITS[split]]
    expected = rows if idx is None else rows[np.array(idx, int) if isinstance(idx, (list, tuple)) else idx]

    result = access_batch(split, idx, kind, GOOD)

    np.testing.assert_array_equal(result, expected, strict=True)
    assert type(result) is np.ndarray


@pytest.mark.parametrize("row", [0, 13, -1, np.int64(5)])
def test_a_number_gives_one_row_with_its_axis_as_in_the_notebook(good: dict[str, Any], row: int) -> None:
    result = access_batch("val", row, "image", GOOD)

    np.testing.assert_array_equal(result, good["image_features"][SPLITS["val"]][[row]], strict=True)
    assert result.shape == (1, 16)


def test_a_mask_chooses_rows_as_in_numpy(good: dict[str, Any]) -> None:
    mask = np.arange(14) % 3 == 0

    result = access_batch("test", mask, "label", GOOD)

    np.testing.assert_array_equal(result, good["labels"][56:][mask], strict=True)


def test_the_script_calls_the_type_feature_and_the_default_is_image(good: dict[str, Any]) -> None:
    np.testing.assert_array_equal(access_batch(split="val", feature="label", path=GOOD), good["labels"][36:56])
    np.testing.assert_array_equal(access_batch(path=GOOD), good["image_features"])
    np.testing.assert_array_equal(access_batch("TRAIN", type="IMAGE", path=GOOD), good["image_features"][:36])


def test_any_split_name_of_the_file_can_be_read(tmp_path: Path, good: dict[str, Any]) -> None:
    path = tmp_path / "patients.h5"
    from ccassets.h5 import append_batch

    with init_file(path, 16, 9) as file:
        for split, chosen in (("患者 001", slice(0, 3)), ("LIDC-IDRI-0001_0", slice(3, 4)), ("Train", slice(4, 9))):
            rows = np.arange(chosen.start, chosen.stop)
            append_batch(file, good["image_features"][rows], good["image_token_features"][rows], rows, split, rows)

    assert access_batch("患者 001", [2, 0], "label", path).tolist() == [2, 0]
    assert access_batch("LIDC-IDRI-0001_0", None, "patches", path).shape == (1, 9, 16)
    assert access_batch("Train", None, "label", path).tolist() == [4, 5, 6, 7, 8]


def test_only_the_rows_asked_for_are_read(monkeypatch: pytest.MonkeyPatch, good: dict[str, Any]) -> None:
    read: list[int] = []
    plain = h5py.Dataset.__getitem__

    def counting(self: h5py.Dataset, key: Any, **options: Any) -> Any:
        values = plain(self, key, **options)
        if self.name == "/image_token_features":
            assert isinstance(key, slice)  # never a list of rows, for which h5py needs minutes
            read.append(len(values))
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)

    result = access_batch("train", [30, 5, 6, 7, 30, 5], "patches", GOOD)

    np.testing.assert_array_equal(result, good["image_token_features"][[30, 5, 6, 7, 30, 5]])
    assert read == [3, 1]


@pytest.mark.parametrize(
    ("arguments", "builtin", "message"),
    [
        ({"split": "trian"}, ValueError, "no split 'trian'; it has ['all', 'train', 'val', 'test']"),
        ({"type": "picture"}, ValueError, "expected one of ['image', 'patches', 'label']"),
        ({"type": "image", "feature": "label"}, ValueError, "type or feature"),
        ({"split": "test", "idx": 14}, IndexError, "'test' has 14 rows"),
        ({"split": "test", "idx": [0, -15]}, IndexError, "'test' has 14 rows"),
        ({"idx": [0.5]}, ValueError, "expected None, a number, a slice, row numbers or a mask"),
        ({"path": "nowhere.h5"}, FileNotFoundError, "There is no file nowhere.h5"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_arguments_are_told_and_still_caught_as_before(
    arguments: dict[str, Any], builtin: type[Exception], message: str
) -> None:
    with pytest.raises(CcassetsError) as caught:
        access_batch(**{"path": GOOD, **arguments})

    assert isinstance(caught.value, builtin)
    assert message in str(caught.value)


def test_a_sample_is_given_and_printed(good: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    sample = access_sample_by_index(40, GOOD)

    assert list(sample) == ["image_feature", "image_token_feature", "id", "label", "split"]
    np.testing.assert_array_equal(sample["image_feature"], good["image_features"][40], strict=True)
    np.testing.assert_array_equal(sample["image_token_feature"], good["image_token_features"][40], strict=True)
    assert (sample["id"], sample["label"], sample["split"]) == (40, good["labels"][40], "val")
    assert capsys.readouterr().out == (
        f"sample_id: 40, label: {good['labels'][40]}, split_name: val, "
        "img_feat.shape: (16,), img_tokens.shape: (9, 16)\n"
    )
    with pytest.raises(IndexError, match="has 70 rows; there is no row 70"):
        access_sample_by_index(70, GOOD)


def test_a_store_without_tokens_gives_none_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ccassets.h5 import append_batch

    path = tmp_path / "plain.h5"
    with init_file(path, 4, t_img=0) as file:
        append_batch(file, np.eye(4), None, None, "train", [0, 1, 2, 3])

    assert access_sample_by_index(2, path)["image_token_feature"] is None
    with pytest.raises(KeyError) as caught:
        access_batch("train", None, "patches", path)
    assert str(caught.value).endswith("was stored without token features; there are no patches in it.")


# --- templates ----------------------------------------------------------------------------------------


def test_template_names_are_sorted() -> None:
    names = get_template_names(GOOD)

    assert names == sorted(names)
    assert len(names) == 12


@pytest.mark.parametrize(("kind", "array"), [("text", "text_features"), ("tokens", "text_token_features")])
def test_templates_are_chosen_by_kind_and_id(good: dict[str, Any], kind: str, array: str) -> None:
    concepts = fetch_template_features(type=kind, path=GOOD)
    labels = fetch_template_features(is_concept=False, is_label=True, type=kind, path=GOOD)
    two = fetch_template_features(["concept_prompts_t02", "concept_prompts_t01"], feature=kind, path=GOOD)
    one = fetch_template_features("label_prompts_t03", is_concept=False, type=kind, path=GOOD)
    everything = fetch_template_features(is_concept=False, type=kind, path=GOOD)

    assert isinstance(concepts, dict)
    assert list(concepts) == [f"concept_prompts_t{number:02d}" for number in range(1, 10)]
    assert isinstance(labels, dict)
    assert list(labels) == [f"label_prompts_t{number:02d}" for number in range(1, 4)]
    assert isinstance(two, dict)
    assert list(two) == ["concept_prompts_t01", "concept_prompts_t02"]
    assert isinstance(everything, dict)
    for name, values in everything.items():
        np.testing.assert_array_equal(values, good[name][array], strict=True)
    np.testing.assert_array_equal(one, good["label_prompts_t03"][array], strict=True)


def test_concepts_are_taken_in_the_order_asked_for(good: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    result = fetch_template_features(concept_list=["Round nucleus", "no such", "Segmented nucleus"], path=GOOD)

    assert isinstance(result, dict)
    assert list(result) == [f"concept_prompts_t{number:02d}" for number in range(1, 10)]
    for name, values in result.items():
        np.testing.assert_array_equal(values, good[name]["text_features"][[3, 0]], strict=True)
    assert "Concepts not found in concept_texts, will ignore: ['no such']" in capsys.readouterr().out
    one = fetch_template_features("concept_prompts_t04", concept_list="Pale cytoplasm", type="tokens", path=GOOD)
    np.testing.assert_array_equal(one, good["concept_prompts_t04"]["text_token_features"][[10]], strict=True)


def test_rows_follow_the_texts_of_the_template_when_the_list_was_changed(own_copy: Path, good: dict[str, Any]) -> None:
    import json

    with h5py.File(own_copy, "r+") as file:
        words = json.loads(file.attrs["concept_texts"])
        file.attrs["concept_texts"] = json.dumps(words[5:])

    result = fetch_template_features("concept_prompts_t01", concept_list=["Pale cytoplasm"], path=own_copy)

    np.testing.assert_array_equal(result, good["concept_prompts_t01"]["text_features"][[10]], strict=True)


def test_a_template_of_other_lists_is_refused_where_rows_are_asked_by_concept(own_copy: Path) -> None:
    with h5py.File(own_copy, "r+") as file:
        group = file["templates"].create_group("concept_prompts_t10")
        group["text_features"] = np.zeros((3, 16), np.float32)
        group["texts"] = ["an older wording with x", "an older wording with y", "an older wording with z"]

    with pytest.raises(CcassetsError, match=r"'concept_prompts_t10' does not hold \['Round nucleus'\]"):
        fetch_template_features(concept_list=["Round nucleus"], path=own_copy)
    result = fetch_template_features("concept_prompts_t10", path=own_copy)
    assert isinstance(result, np.ndarray)
    assert result.shape == (3, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"is_concept": True, "is_label": True}, "exclude each other"),
        ({"template_id": "label_prompts_t01"}, "no template ['label_prompts_t01'] that begins with 'concept'"),
        ({"type": "features"}, "expected one of ['text', 'tokens']"),
        ({"concept_list": ["nothing known"]}, "none of ['nothing known'] is a concept"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_choices_of_templates_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared below
        fetch_template_features(path=GOOD, **arguments)

    assert isinstance(caught.value, CcassetsError)
    assert message in str(caught.value)


# --- overviews ----------------------------------------------------------------------------------------


def test_the_summary_shows_the_tree_with_one_brace(capsys: pytest.CaptureFixture[str]) -> None:
    summarize_h5(GOOD, max_templates=1)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image_features: (70, 16)"
    assert lines[2] == "split counts: {'train': 36, 'val': 20, 'test': 14}"
    assert lines[3] == "templates: ['concept_prompts_t01', '...']"
    assert lines[7:] == [
        "legacy_good.h5",
        "├── image_features               # [70, 16]",
        "├── image_token_features         # [70, 9, 16]",
        "├── ids                          # [70] int64",
        "├── labels                       # [70] int64",
        "├── split                        # [70]",
        "├── attrs: {D, T_img, created_at, version, split_counts, logit_scale, logit_bias, concept_logit_scale, "
        "concept_logit_bias, label_texts, prompt_temp_for_labels, concept_texts, prompt_temp_for_concepts, ...}",
        "└── templates/",
        "    ├── concept_prompts_t01/",
        "    │   ├── text_features        # [15, 16] (float32)",
        "    │   ├── text_token_features  # [15, 14, 16] (float32)",
        "    │   ├── texts                # [15] (variable length string)",
        "    │   └── attrs: {K, D, T_txt, texts_hash, created_at}",
        "    └── ...",
    ]


def test_validation_prints_as_before_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    findings = validate_h5(GOOD)
    printed = capsys.readouterr().out

    assert "Total samples stored: 70\nimage_features dataset shape: (70, 16)" in printed
    assert "Preview ids: [0 1 2 3 4]" in printed
    assert "label_texts: ['basophil', 'eosinophil', 'erythroblast', '...']" in printed
    assert "  • Template 'concept_prompts_t02' -> K=15, D=16" in printed
    assert findings is not None
    assert {finding.severity for finding in findings} == {"warning"}

    doubled = validate_h5(LEGACY / "legacy_duplicated.h5")

    assert doubled is not None
    assert "doubled_rows" in {finding.check for finding in doubled}
    assert "error: doubled_rows" in capsys.readouterr().out


def test_validating_a_file_that_is_not_there_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate_h5(tmp_path / "none.h5") is None
    assert "does not exist yet" in capsys.readouterr().out


def test_a_file_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    with init_file(tmp_path / "open.h5", 4, 2), pytest.raises(CcassetsError, match="is open elsewhere"):
        get_template_names(tmp_path / "open.h5")
