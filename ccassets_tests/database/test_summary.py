"""The summary of a file: plain values for the command line and the validation page, whatever kind of file it is."""

from __future__ import annotations

import json
from pathlib import Path

from ccassets.database.reader import open_database
from ccassets.database.summary import summarize
from ccassets_tests.database.made_files import write_database, write_template_part
from ccassets_tests.made_studies import DATA


def test_a_database_is_summed_up_in_plain_json(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5")) as database:
        facts = json.loads(json.dumps(summarize(database)))

    assert facts["file"] == "a.h5"
    assert facts["bytes"] == (tmp_path / "a.h5").stat().st_size
    assert (facts["rows"], facts["dim"], facts["token_count"]) == (20, 12, 4)
    assert facts["splits"] == {"train": 9, "val": 5, "test": 6}
    assert facts["templates"]["label_prompts_t02"] == {"prompts": 3, "first": "a smear of a basophil"}
    assert facts["concepts"] == ["round nucleus", "圆形细胞核", "granules"]
    assert facts["encoder"]["kind"] == "python"
    assert facts["origin"] == "extracted"
    assert len(facts["digest"]) == 64


def test_old_files_and_parts_are_summed_up_by_what_they_have(tmp_path: Path) -> None:
    with open_database(DATA / "legacy" / "legacy_duplicated.h5") as doubled:
        facts = summarize(doubled)
        assert (facts["rows"], facts["origin"], facts["digest"]) == (114, None, None)
        assert facts["splits"] == {"train": 72, "val": 28, "test": 14}  # As they stand, not as the attribute says.
    with open_database(write_template_part(tmp_path / "a.h5")) as part:
        facts = summarize(part)
        assert (facts["profile"], facts["rows"], facts["splits"]) == ("template-part", 0, {})
        assert list(facts["templates"]) == ["concept_prompts_t01"]
