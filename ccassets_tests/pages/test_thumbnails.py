"""Thumbnails: heat lies over its patch, sprites and strips hold every image, and a split has a contact sheet."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ccassets.database.token_geometry import TokenGeometry
from ccassets.datasets import open_dataset
from ccassets.extraction import read_images
from ccassets.pages.contact_sheet import contact_sheet
from ccassets.pages.thumbnails import fit_layer, heat_layer, image_strip, make_sprite, overlay
from ccassets.study.storage import Store
from ccassets_tests.analysis.made_phantoms import phantom_study


def test_heat_lies_over_the_patch_it_belongs_to() -> None:
    layer = heat_layer(np.array([0, 1, 0, 0], np.float32))
    assert layer.size == (2, 2)
    assert [layer.getpixel((x, y))[3] > 0 for y in (0, 1) for x in (0, 1)] == [False, True, False, False]
    heated = np.asarray(overlay(Image.new("RGB", (40, 40), "white"), layer), int)
    change = np.abs(heated - 255).sum(axis=2)
    assert change[5, 35] > 100
    assert change[35, 5] < 20


def test_heat_lies_in_the_rectangle_that_the_patches_cover() -> None:
    layer = heat_layer(np.ones(4, np.float32))
    size = (120, 40)
    fitted = fit_layer(layer, size, TokenGeometry("crop", 224, 224).rectangle(*size))
    covered = np.asarray(overlay(Image.new("RGB", size, "white"), fitted), int).sum(axis=2) < 3 * 255
    assert covered[:, 40:80].all()
    assert not covered[:, :39].any()
    assert not covered[:, 81:].any()
    assert fit_layer(layer, size, TokenGeometry("squash").rectangle(*size)) is layer


def test_a_sprite_and_a_strip_hold_every_image() -> None:
    images = [Image.new("RGB", (9, 9), colour) for colour in ("red", "green", "blue", "white", "yellow")]
    sprite = make_sprite(images, 8)
    assert (sprite.side, sprite.columns) == (8, 3)
    assert sprite.source.startswith("data:image/webp;base64,")
    assert image_strip(images, 8).size == (5 * 12 - 4, 8)


def test_a_contact_sheet_shows_at_most_eight_images_of_a_split(tmp_path: Path) -> None:
    study = phantom_study(tmp_path, lambda a: a["dataset"].update(rows={"train": 30, "val": 2, "test": 0}))
    store = Store.of(study, tmp_path / "storage")
    dataset = open_dataset(study, store)
    for split, images in (("train", 8), ("val", 2)):
        sheet = contact_sheet(dataset, read_images(study, split, store=store, dataset=dataset))
        assert sheet.startswith("![samples](data:image/webp;base64,")
        with Image.open(io.BytesIO(base64.b64decode(sheet[:-1].partition(",")[2]))) as image:
            assert image.size == (72 * images - 4, 68)
    assert contact_sheet(dataset, read_images(study, "test", store=store, dataset=dataset)) == "no images"
