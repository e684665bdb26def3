"""The database of a study: what it waits for, what it records, and when it is left as it is."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

import ccassets
from ccassets.database.feature_digests import database_digest, split_digest, template_digest
from ccassets.database.reader import open_database
from ccassets.errors import DatasetError, EncoderError, StorageError
from ccassets.extraction import assemble_database, extract_images, extract_text, identify_encoder
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import arrays, build, build_in_storage, deep_errors, parts
from ccassets_tests.made_studies import VOCABULARY, picture, save_images, write_study

# --- what it waits for -------------------------------------------------------------------------------


def test_a_split_that_is_not_encoded_is_named(study: Study) -> None:
    extract_text(study)
    for split in ("train", "test"):
        extract_images(study, split)
    with pytest.raises(DatasetError, match="The images of split 'val' of cells have not been read yet"):
        assemble_database(study)

    ccassets.read_images(study, "val")

    with pytest.raises(StorageError, match=r"5 of 5 images of split 'val' are not encoded yet \(the first is 'val/blo"):
        assemble_database(study)
    assert not Store.of(study).database.exists()


def test_a_template_that_is_not_encoded_is_named(study: Study) -> None:
    for split in study.splits:
        extract_images(study, split)
    done = {part.template_id: part.part for part in extract_text(study)}
    done["label_prompts_t02"].unlink()

    with pytest.raises(StorageError, match="Template 'label_prompts_t02' of cells is not encoded yet"):
        assemble_database(study)


def test_an_encoder_that_was_not_looked_at_is_named(study: Study) -> None:
    with pytest.raises(EncoderError, match="The encoder of cells has not been identified yet"):
        assemble_database(study)


def test_an_identity_card_that_cannot_be_read_is_one_that_is_not_there(study: Study) -> None:
    identify_encoder(study)
    Store.of(study).encoder_card.write_text("{")

    with pytest.raises(EncoderError, match="The encoder of cells has not been identified yet"):
        assemble_database(study)
    assert identify_encoder(study).identity


def test_a_part_that_went_missing_is_said_and_encoded_again(study: Study) -> None:
    built = build(study)
    built.path.unlink()
    parts(study)[0].unlink()

    with pytest.raises(StorageError, match="4 of 9 images of split 'train' are not encoded yet"):
        assemble_database(study)
    assert build(study).encoded == 4


# --- what it records ---------------------------------------------------------------------------------


def test_the_recorded_digests_are_those_of_the_content(study: Study) -> None:
    built = build(study)

    with open_database(built.path) as database:
        splits = {
            split: split_digest(
                database.feature_digest[rows],
                keys=database.keys[rows],
                labels=database.labels[rows],
                groups=None,
                label_matrix=None,
            )
            for split, rows in database.splits.items()
        }
        templates = {name: template_digest(template) for name, template in database.templates.items()}
        words = ("label_texts", "prompt_temp_for_labels", "concept_texts", "prompt_temp_for_concepts")
        vocabulary = {name: database.attributes[name] for name in words}
        recorded = database.provenance["digests"]
        assert recorded == {"splits": splits, "database": database_digest(splits, templates, vocabulary)}
        assert built.assembly.digest == recorded["database"]
        assert {split: part.digest for split, part in built.images.items()} == splits
        assert {name: part.digest for name, part in built.templates.items()} == templates


def test_where_it_comes_from_is_recorded(study: Study) -> None:
    built = build(study)
    names = {part.name for part in parts(study)}

    with open_database(built.path) as database:
        provenance = database.provenance
        assert provenance["origin"] == "extracted"
        assert provenance["encoder"]["identity"] == identify_encoder(study).identity
        assert provenance["dataset"]["name"] == "pictures"
        assert provenance["dataset"]["classes"] == ["blood", "platelet", "white"]
        assert provenance["extraction"] == {"batch_size": 2, "rows_per_shard": 4, "on_bad_image": "error"}
        assert {part["name"] for part in provenance["parts"]} == names
        assert sum(part["rows"] for part in provenance["parts"]) == 18
        assert {"torch", "numpy", "h5py", "ccassets"} <= provenance["libraries"].keys()
        assert database.attributes["split_counts"] == {"train": 9, "val": 5, "test": 4}
        assert database.attributes["concept_texts"] == VOCABULARY["concepts"]["words"]


def test_groups_and_concepts_with_synonyms_come_through(tmp_path: Path, weights: Path) -> None:
    images = save_images(tmp_path / "pictures")
    with (images / "cells.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split", "patient"])
        for number, path in enumerate(sorted(images.rglob("*.png"))):
            split, name, _ = path.relative_to(images).parts
            table.writerow([path.relative_to(images).as_posix(), name, split, f"{split} 病人 {number // 2}"])
    attributes = {
        "dataset": {"kind": "table", "file": str(images / "cells.csv"), "columns": {"group": "patient"}},
        "encoder": {"kind": "conceptclip", "weights": str(weights)},
        "vocabulary": {
            "concepts": {
                "words": [{"word": "red cell", "synonyms": ["immature granulocytes"], "level": 2}, "pigment network"],
                "templates": ["this is {}"],
            }
        },
    }
    (tmp_path / "studies" / "table").mkdir(parents=True)
    text = yaml.safe_dump({"type": "ccassets.FeatureDatabase", "attributes": attributes})
    (tmp_path / "studies" / "table" / "defs.yaml").write_text(text)
    study = load_study(tmp_path / "studies" / "table")

    built = build(study)

    assert deep_errors(built, study) == []
    with open_database(built.path) as database:
        assert database.groups[0].startswith("train 病人 ")
        assert len(set(database.groups)) >= 9
        assert database.concepts == {
            "red cell": ("red cell", "immature granulocytes"),
            "pigment network": ("pigment network",),
        }
        assert database.concept_features().shape == (2, database.dim)
        assert database.attributes["concepts"][0]["level"] == 2


# --- when it is left as it is ------------------------------------------------------------------------


def test_a_data_set_called_like_a_number_is_a_name_and_no_reason_to_build_again(tmp_path: Path, weights: Path) -> None:
    study = write_study(tmp_path / "studies" / "cells", images=save_images(tmp_path / "2024"), encoder=weights)

    first, again = build(study), build(study)

    assert (first.assembly.unchanged, again.assembly.unchanged) == (False, True)
    with open_database(first.path) as database:
        assert database.attributes["dataset"] == database.provenance["dataset"]["name"] == "2024"


def test_equal_content_has_an_equal_digest_wherever_and_whenever_it_is_built(study: Study, tmp_path: Path) -> None:
    assert build(study).assembly.digest == build_in_storage(study, tmp_path / "elsewhere").assembly.digest


def test_another_order_of_templates_is_another_file_with_the_old_image_bytes(
    study: Study, image_folder: Path, weights: Path
) -> None:
    first = build(study)
    images = arrays(first.path)["image_token_features"]
    labels = {**VOCABULARY["labels"], "templates": VOCABULARY["labels"]["templates"][::-1]}
    turned = write_study(
        study.folder, images=image_folder, encoder=weights, vocabulary={**VOCABULARY, "labels": labels}
    )

    second = build(turned)

    assert not second.assembly.unchanged
    assert second.assembly.digest != first.assembly.digest
    assert np.array_equal(arrays(second.path)["image_token_features"], images)


def test_a_reader_keeps_the_old_database_while_the_new_one_is_published(study: Study, image_folder: Path) -> None:
    with open_database(build(study).path) as old:
        picture(1000).save(image_folder / "train" / "blood" / "0000.png")
        build(study)

        with open_database(old.path) as new:
            assert (len(old), len(new)) == (18, 19)
            assert np.array_equal(old.image_token_features[:1], new.image_token_features[:1])
            assert np.array_equal(old.image_token_features[1:], new.image_token_features[2:])


def test_an_output_elsewhere_leaves_nothing_else_there(study: Study, tmp_path: Path) -> None:
    build(study)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".mine.partial").write_text("of another program")

    made = assemble_database(study, output=tmp_path / "out" / "copy.h5")

    assert sorted(path.name for path in made.path.parent.iterdir()) == [".mine.partial", "copy.h5"]
    assert ccassets.validate_database(made.path, study=study, deep=True) == []
