"""Token geometry: the rectangle that patches cover, what is never seen, and where a map would mean nothing."""

from __future__ import annotations

from typing import Any

import pytest

from ccassets.database.token_geometry import TokenGeometry, no_map_reason, token_geometry

CROP = {"rule": "crop", "shortest_edge": 256, "crop": 224}


@pytest.mark.parametrize(
    ("geometry", "rectangle", "unseen"),
    [
        (TokenGeometry("squash"), (0, 0, 300, 100), 0),
        (TokenGeometry("crop", 224, 224), (100, 0, 200, 100), 2 / 3),
        (TokenGeometry("crop", 256, 224), (106.25, 6.25, 193.75, 93.75), 1 - 87.5**2 / 30000),
        (TokenGeometry("pad"), (0, -100, 300, 200), 0),
    ],
)
def test_patches_cover_a_rectangle_of_a_wide_picture(
    geometry: TokenGeometry, rectangle: tuple[float, ...], unseen: float
) -> None:
    assert geometry.rectangle(300, 100) == pytest.approx(rectangle)
    assert geometry.unseen_share(300, 100) == pytest.approx(unseen)
    assert geometry.unseen_share(100, 300) == pytest.approx(unseen)


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ({"kind": "conceptclip", "recorded": {"weights": "x"}}, None),
        ({"kind": "phantom"}, None),
        ({"kind": "python", "recorded": {"tokens_for_words": True, "geometry": CROP}}, None),
        ({"kind": "python", "recorded": {"tokens_for_words": True}}, "does not say which rectangle"),
        ({"kind": "python", "recorded": {"tokens_for_words": True, "geometry": {"odd": 1}}}, "does not say which"),
        ({"kind": "python"}, "were not trained to be compared with words"),
        ({"kind": "transformers", "recorded": {"geometry": CROP}}, "were not trained to be compared with words"),
        ({}, "of an unknown kind"),
    ],
)
def test_a_map_needs_patches_trained_for_words_and_a_known_rectangle(
    encoder: dict[str, Any], reason: str | None
) -> None:
    stated = no_map_reason(encoder, 729)
    assert stated is None if reason is None else reason in str(stated)
    assert (no_map_reason(encoder, 730) is None) is False


def test_the_card_of_an_encoder_is_read_like_a_provenance() -> None:
    assert token_geometry({"kind": "python", "recorded": {"geometry": CROP}}) == TokenGeometry("crop", 256, 224)
