"""Text extraction: a template is encoded once, is what the encoder gives, and a damaged part is encoded again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import ccassets
from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import TextFeatures
from ccassets.errors import EncoderError, StudyError
from ccassets.extraction import extract_template, extract_text, identify_encoder
from ccassets.study.schema import Study
from ccassets_tests.extraction.made_parts import COLOURS, arrays, errors
from ccassets_tests.made_studies import edit_study, write_study

T01 = "concept_prompts_t01"


def test_a_part_holds_what_the_encoder_gives(study: Study) -> None:
    done = {part.template_id: part for part in extract_text(study)}

    assert {name: (part.prompts, part.encoded) for name, part in done.items()} == dict.fromkeys(
        ("concept_prompts_t01", "concept_prompts_t02", "label_prompts_t01", "label_prompts_t02"), (3, 3)
    )
    encoder = load_encoder(study)
    for name, template in study.vocabulary.templates().items():
        expected = encoder.encode_texts(template.prompts)
        stored = {path.rpartition("/")[2]: values for path, values in arrays(done[name].part).items()}
        assert np.array_equal(stored["text_features"], expected.features)
        assert np.array_equal(stored["text_token_features"], expected.tokens)
        assert np.array_equal(stored["input_ids"], expected.input_ids)
        assert np.array_equal(stored["attention_mask"], expected.attention_mask)
        assert [text.decode() for text in stored["texts"]] == list(template.prompts)
        assert errors(ccassets.validate_database(done[name].part, deep=True)) == []


def test_the_span_of_a_word_covers_its_tokens_and_no_others(study: Study) -> None:
    part = extract_text(study)[0].part
    stored = {path.rpartition("/")[2]: values for path, values in arrays(part).items()}
    encoder = load_encoder(study)

    for prompt, ids, (first, last) in zip(
        study.vocabulary.templates()[T01].prompts, stored["input_ids"], stored["subject_span"], strict=True
    ):
        word = prompt.removeprefix("a cell showing ")
        alone = encoder.encode_texts([word])
        inside = alone.input_ids[0][alone.attention_mask[0] == 1][1:-1]
        assert np.array_equal(ids[first:last], inside), word


def test_a_word_that_the_model_does_not_know_stops_before_anything_is_encoded(study: Study) -> None:
    unknown = edit_study(study, lambda section: section["vocabulary"]["concepts"]["words"].append("颗粒"))

    with pytest.raises(EncoderError, match="'颗', '粒' in 'a cell showing 颗粒'"):
        identify_encoder(unknown)
    assert not ccassets.Store.of(unknown).encoder_card.exists()


def test_a_second_time_costs_nothing_and_loads_no_encoder(study: Study) -> None:
    first = extract_text(study)

    def must_not_load() -> Any:
        raise AssertionError("the encoder was loaded")

    for before in first:
        again = extract_template(study, before.template_id, encoder=must_not_load)
        assert (again.encoded, again.digest, again.part) == (0, before.digest, before.part)


def test_fresh_encodes_again(study: Study) -> None:
    first = extract_text(study)

    again = extract_text(study, fresh=True)

    assert [part.encoded for part in again] == [3, 3, 3, 3]
    assert [part.digest for part in again] == [part.digest for part in first]


def test_equal_prompts_under_two_ids_are_encoded_once(study: Study, image_folder: Path, weights: Path) -> None:
    vocabulary = {"custom": {"one": ["a cell"], "two": ["a cell"], "other": ["the cell"]}}
    custom = write_study(study.folder, images=image_folder, encoder=weights, vocabulary=vocabulary)

    assert {part.template_id: part.encoded for part in extract_text(custom)} == {"one": 1, "other": 1, "two": 0}
    for split in custom.splits:
        ccassets.extract_images(custom, split)
    path = ccassets.assemble_database(custom).path
    assert errors(ccassets.validate_database(path, study=custom, deep=True)) == []
    with ccassets.open_database(path) as database:
        assert list(database.templates) == ["one", "other", "two"]


def test_an_unknown_template_lists_the_known_ones(study: Study) -> None:
    identify_encoder(study)

    with pytest.raises(StudyError, match="cells has no template 't01'; it has concept_prompts_t01, "):
        extract_template(study, "t01")


def test_an_encoder_without_text_refuses_templates_in_a_sentence(tmp_path: Path, image_folder: Path) -> None:
    study = write_study(
        tmp_path / "studies" / "grey", images=image_folder, encoder={"kind": "python", "target": "colours:Colours"}
    )
    (study.folder / "colours.py").write_text(COLOURS)

    with pytest.raises(EncoderError, match="has no text tower: leave the templates out of the vocabulary"):
        extract_text(study)


class Broken:
    """An encoder whose text features are not finite."""

    def __init__(self, study: Study, name: str) -> None:
        self._encoder = load_encoder(study)
        self._name = name
        self.card = self._encoder.card

    def encode_texts(self, prompts: list[str]) -> TextFeatures:
        result = self._encoder.encode_texts(prompts)
        getattr(result, self._name)[1, 0] = np.inf
        return result


@pytest.mark.parametrize(("name", "called"), [("features", "text_features"), ("tokens", "text_token_features")])
def test_text_features_that_are_not_finite_name_their_template(study: Study, name: str, called: str) -> None:
    identify_encoder(study)

    with pytest.raises(EncoderError, match=f"{T01}: the encoder gave {called} that are not finite"):
        extract_template(study, T01, encoder=lambda: Broken(study, name))


def flip(path: Path, name: str) -> None:
    with h5py.File(path) as file:
        offset = file[f"templates/{T01}/{name}"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset + 8] ^= 1
    path.write_bytes(data)


def edit(path: Path, change: Callable[[h5py.Group], Any]) -> None:
    with h5py.File(path, "r+") as file:
        change(file[f"templates/{T01}"])


def change_text(group: h5py.Group) -> None:
    group["texts"][0] = "a cell showing something else"


def change_encoder(group: h5py.Group) -> None:
    provenance = group.file.attrs["provenance"]
    del group.file.attrs["provenance"]
    group.file.attrs["provenance"] = provenance.replace('"identity": "', '"identity": "0')


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit of the features": lambda path: flip(path, "text_features"),
    "a bit of the tokens": lambda path: flip(path, "text_token_features"),
    "a bit of the ids": lambda path: flip(path, "input_ids"),
    "a bit of the mask": lambda path: flip(path, "attention_mask"),
    "a bit of the spans": lambda path: flip(path, "subject_span"),
    "another text": lambda path: edit(path, change_text),
    "another encoder": lambda path: edit(path, change_encoder),
    "no features": lambda path: edit(path, lambda group: group.__delitem__("text_features")),
    "no template": lambda path: edit(path, lambda group: group.parent.__delitem__(T01)),
    "no templates": lambda path: edit(path, lambda group: group.file.__delitem__("templates")),
    "no provenance": lambda path: edit(path, lambda group: group.file.attrs.__delitem__("provenance")),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda name: name.replace(" ", "-"))
def test_a_damaged_part_is_encoded_again(study: Study, damage: str) -> None:
    before = extract_text(study)[0]
    good = arrays(before.part)

    DAMAGES[damage](before.part)
    again = {part.template_id: part for part in extract_text(study)}

    assert {name: part.encoded for name, part in again.items() if part.encoded} == {T01: 3}
    assert again[T01].digest == before.digest
    stored = arrays(before.part)
    assert [name for name in good if not np.array_equal(stored[name], good[name])] == []


def test_the_part_of_another_template_in_its_place_is_not_used(study: Study) -> None:
    done = {part.template_id: part for part in extract_text(study)}
    shutil.copy(done["concept_prompts_t02"].part, done[T01].part)

    again = {part.template_id: part.encoded for part in extract_text(study)}

    assert again[T01] == 3
    assert sum(again.values()) == 3
