"""Studies with classes of very few images, and with grades, through the assets: built, measured, and said plainly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccassets.analysis import write_paper_tables
from ccassets.database.reader import open_database
from ccassets.orchestration.build import run_build
from ccassets.study.storage import Store
from ccassets_tests.orchestration.made_findings import FINDINGS, write_classes_study
from ccassets_tests.pages.page_terms import unexplained_terms
from ccassets_tests.tools.doctor_lines import doctor_lines

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:Specifying a partitions_def:dagster.PreviewWarning"),
]

CLASSES = FINDINGS[:5]
COUNTS = {  # 113, 57, 23, 6 and 2 images in all; the last class has none in val or test.
    "train": dict(zip(CLASSES, (60, 30, 12, 4, 2), strict=True)),
    "val": dict(zip(CLASSES, (26, 13, 5, 1, 0), strict=True)),
    "test": dict(zip(CLASSES, (27, 14, 6, 1, 0), strict=True)),
}


@pytest.mark.parametrize("ordinal", [False, True])
@pytest.mark.slow
def test_rare_classes_and_grades_are_built_and_measured(
    ordinal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "home"))
    labels: dict[str, Any] = {"words": list(CLASSES), "templates": ["an image of {}"]}
    if ordinal:
        labels["ordinal"] = True
    vocabulary = {"labels": labels, "concepts": {"words": list(FINDINGS), "templates": ["signs of {}"]}}
    study = write_classes_study(tmp_path / "studies" / "rare", COUNTS, vocabulary=vocabulary)
    result = run_build(study)

    assert result.notices == []
    store = Store.of(study)
    with open_database(store.database) as database:
        assert len(database) == 113 + 57 + 23 + 6 + 2
    for name in ("zero_shot", "concept_bottleneck"):
        content = json.loads((store.analysis / f"{name}.json").read_text(encoding="utf-8"))
        for split in ("val", "test"):
            values = content["splits"][split]
            assert values["absent"] == [4]
            assert values["recall"][4]["value"] is None
            assert values["accuracy"]["value"] > 0.8
            assert values["macro_f1"]["value"] > 0.5
            assert (values["quadratic_kappa"] is not None) == ordinal
            assert (values["mean_absolute_error"] is not None) == ordinal
    page = (store.analysis / "concept_atlas.html").read_text(encoding="utf-8")
    sentence = f"{CLASSES[4]}: 2 images in train, none in val or test: not measured"
    assert f"<li>{sentence}.</li>" in page
    assert sentence in (store.reports / "validation.html").read_text(encoding="utf-8")
    lines = {line.what: line for line in doctor_lines(study)}
    assert (lines["classes"].level, lines["classes"].message) == ("warning", sentence)
    if ordinal:
        assert unexplained_terms(page[: page.index('id="data"')]) == set()
    files = write_paper_tables(study, store, tmp_path / "tables")
    assert ("quadratic kappa" in files[0].read_text(encoding="utf-8")) == ordinal
