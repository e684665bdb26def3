"""A short run of the corruption campaign, and what longer ones found."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from ccassets.study.schema import Study
from ccassets_tests.campaigns.corruption import campaign
from ccassets_tests.extraction.made_parts import build, differences


@pytest.mark.campaign
@pytest.mark.slow
def test_no_changed_byte_goes_unseen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = campaign(tmp_path, seed=3, mutations=30)
    assert sum(ends.values()) == 30
    assert ends["right"] > 5
    assert ends["found"] > 2
    assert not ends["WRONG"], capsys.readouterr().out


def test_a_database_whose_prompts_were_damaged_is_assembled_again(study: Study, tmp_path: Path) -> None:
    built = build(study)
    undamaged = tmp_path / "undamaged.h5"
    undamaged.write_bytes(built.path.read_bytes())
    with h5py.File(built.path, "r+") as file:
        texts = file["templates/label_prompts_t01/texts"]
        texts[...] = texts[...][::-1]

    again = build(study)  # Its rows are sound, and looked at first: that must not vouch for the rest of it.

    assert not again.assembly.unchanged
    assert again.encoded == 0
    assert differences(again.path, undamaged) == []
