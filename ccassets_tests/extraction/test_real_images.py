"""Real blood-cell crops, and the model at its published size: what the small studies of the other tests stand for."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

import ccassets
from ccassets.encoders.checkpoint import PUBLISHED
from ccassets_tests.made_studies import write_study

VOCABULARY = {
    "labels": {"words": ["white blood cell", "red blood cell", "platelet"], "templates": ["a photo of a {}"]},
    "concepts": {"words": ["Segmented nucleus", "Pale cytoplasm"], "templates": ["a cell photo with sign of {}"]},
}


def test_real_crops_become_a_valid_database_with_their_labels(tmp_path: Path, weights: Path, test_data: Path) -> None:
    study = write_study(
        tmp_path / "bccd",
        images=test_data / "data" / "bccd",
        encoder=weights,
        vocabulary={},
        extraction={"batch_size": 40, "rows_per_shard": 80},
    )
    path = ccassets.build(study)
    assert path is not None
    assert ccassets.validate_database(path, study=study, deep=True) == []
    with ccassets.open_database(path) as database:
        assert {name: rows.stop - rows.start for name, rows in database.splits.items()} == {
            "train": 360,
            "val": 120,
            "test": 120,
        }
        assert database.attributes["label_classes"] == ["Platelets", "RBC", "WBC"]
        assert database.keys is not None
        folders = [key.split("/")[1] for key in database.keys]
        assert [database.attributes["label_classes"][label] for label in database.labels] == folders


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_published_dimensions_with_random_weights(tmp_path: Path, test_data: Path) -> None:
    crops = test_data / "data" / "bccd"
    for split in ("train", "val", "test"):
        sources = sorted((crops / split).glob("*/*.jpg"))
        for source in sources[:: len(sources) // 4][:4]:
            target = tmp_path / "crops" / split / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    study = write_study(
        tmp_path / "published",
        images=tmp_path / "crops",
        encoder={
            "kind": "conceptclip",
            "weights": "random",
            "seed": 0,
            "tokenizer": str(stand_in_vocabulary(tmp_path)),
        },
        vocabulary=VOCABULARY,
        extraction={"batch_size": 4, "rows_per_shard": 4},
    )
    path = ccassets.build(study)
    assert path is not None
    findings = ccassets.validate_database(path, study=study, deep=True)
    assert [finding.check for finding in findings] == ["random_weights"]
    with ccassets.open_database(path) as database:
        assert (len(database), database.dim, database.token_count) == (12, 1152, 729)
        assert database.templates["label_prompts_t01"].text_token_features is not None
        assert np.isfinite(np.asarray(database.image_token_features)).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.1f} GB")
    assert peak < 12


def stand_in_vocabulary(folder: Path) -> Path:
    """A WordPiece vocabulary of the published size: single characters, some words, and places that nothing takes."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{one}" for one in characters)]
    pieces += ["cell", "blood", "photo", "nucleus", "platelet"]
    size = PUBLISHED["text"]["vocab_size"]
    (folder / "tokenizer").mkdir()
    text = "\n".join([*pieces, *(f"[unused{number}]" for number in range(size - len(pieces)))])
    (folder / "tokenizer" / "vocab.txt").write_text(text + "\n", encoding="utf-8")
    return folder / "tokenizer"
