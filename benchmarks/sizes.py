"""How large the material of a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """`dim` and `tokens` are D and T_img of the material, most others are numbers of rows.

    `rows` are those of the database that is written, read, checked and assembled; `images` go through the phantom
    encoder; `build_rows` (with `build_tokens` patches) make the study that is built again with nothing to do;
    `tenth` are the rows, `few_images` the pictures (more than a pipeline holds at once), and `vectors` the rows without
    patches that are exported, whose peak memory is compared with that of ten times as many. Every contest has `rounds`
    rounds, and more until `seconds` have passed.
    """

    name: str
    dim: int
    tokens: int
    rows: int
    images: int
    search: tuple[int, int]
    build_rows: int
    build_tokens: int
    vectors: int
    tenth: int
    few_images: int
    rounds: int
    seconds: float


SIZES = {
    "small": Size("small", 32, 9, 48, 12, (500, 2000), 40, 9, 200, 12, 12, 2, 0),
    "real": Size("real", 1152, 729, 1024, 1024, (17_092, 1_000_000), 17_092, 729, 17_092, 48, 320, 5, 8),
}
