"""Phantom blood cells: morphology drawn by lot within a class, what it means as concepts, and its picture.

A picture is computed as a microscope makes it: every stained body adds optical density, and light falls off with
its exponential (Beer–Lambert), so overlapping bodies darken one another. Bodies are signed distances on the pixel
grid, which gives smooth edges at any size. Lengths are in units of 1/96 of the image's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from ccassets.files import read_package_yaml

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SIDE = 96.0
SUPERSAMPLING = 4

_TABLE = read_package_yaml(__package__, "phantom_cells.yaml")

CLASSES: tuple[str, ...] = tuple(_TABLE["classes"])
CONCEPTS: tuple[str, ...] = tuple(_TABLE["concepts"])


# --- morphology --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellType:
    """The frequencies of a class's morphologies, and its look beyond the concepts; the table explains the fields."""

    nuclei: Mapping[str, float]
    granules: Mapping[str, float]
    cytoplasm: Mapping[str, float]
    vacuoles: float
    high_ratio: float
    radius: tuple[float, float]
    lobes: tuple[int, int]
    chromatin: tuple[float, float, float]
    outline: float
    tone: tuple[int, int, int]


CELL_TYPES = {name: CellType(**fields) for name, fields in _TABLE["classes"].items()}

PLATELETS_NEARBY = 0.25
PRECIPITATE = 0.15
CLUMP = 0.15


@dataclass(frozen=True)
class Morphology:
    """The content of one image: everything that decides a concept, and nothing else."""

    cell_class: str
    nucleus: str
    granules: str
    cytoplasm: str
    vacuoles: bool
    high_ratio: bool
    platelets: bool
    precipitate: bool
    clump: bool


def sample_morphology(cell_class: str, rng: np.random.Generator) -> Morphology:
    """One cell of a class, by the odds of its type."""
    odds = CELL_TYPES[cell_class]
    nucleus = _pick(odds.nuclei, rng)
    return Morphology(
        cell_class=cell_class,
        nucleus=nucleus,
        granules=_pick(odds.granules, rng),
        cytoplasm=_pick(odds.cytoplasm, rng),
        vacuoles=bool(rng.random() < odds.vacuoles),
        high_ratio=bool(rng.random() < odds.high_ratio) and nucleus in {"round", "reniform"},
        platelets=cell_class == "platelet" or bool(rng.random() < PLATELETS_NEARBY),
        precipitate=bool(rng.random() < PRECIPITATE),
        clump=bool(rng.random() < CLUMP),
    )


def _pick(odds: Mapping[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(list(odds), p=list(odds.values())))


def concepts_of(cell: Morphology) -> dict[str, bool]:
    """The truth of every concept word, in the order of `CONCEPTS`."""
    truths = (
        cell.nucleus == "segmented",
        cell.nucleus == "band",
        cell.nucleus == "reniform",
        cell.nucleus == "round",
        cell.granules == "fine",
        cell.granules == "eosinophilic",
        cell.granules == "basophilic",
        cell.cytoplasm == "basophilic",
        cell.vacuoles,
        cell.high_ratio,
        cell.cytoplasm == "pale",
        cell.cell_class == "erythroblast",
        cell.platelets,
        cell.precipitate,
        cell.clump,
    )
    return dict(zip(CONCEPTS, truths, strict=True))


# --- the picture -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """An RGB image, and as (H, W) masks where the central cell's nucleus and its cytoplasm are."""

    image: Image.Image
    nucleus: Mask
    cytoplasm: Mask


def draw(cell: Morphology, rng: np.random.Generator, size: int) -> Drawing:
    """The picture of a cell, `size` pixels square; the same scene at any size, apart from the pixels' noise."""
    scene = _Canvas(size, rng)
    kind = CELL_TYPES[cell.cell_class]
    centre = rng.uniform(-3.0, 3.0, 2)
    radius = rng.uniform(*kind.radius)
    bodies = _platelet_group(centre, radius, rng) if cell.nucleus == "none" else np.array([[*centre, radius]])
    reach = float(np.max(np.hypot(*(bodies[:, :2] - centre).T) + bodies[:, 2]))

    _draw_red_cells(scene, centre, reach, cell.clump)
    if cell.platelets and cell.nucleus != "none":
        _draw_platelets(scene, _nearby_platelets(centre, reach, rng), tone=_PLATELET, granular=True)
    if cell.nucleus == "none":
        nucleus = np.zeros((size, size), np.float32)
        tone = _PALE if cell.cytoplasm == "pale" else _PLATELET
        body = _draw_platelets(scene, bodies, tone=tone, granular=cell.granules == "fine")
    else:
        nucleus, body = _draw_white_cell(scene, cell, kind, centre, radius)
    if cell.precipitate:
        _draw_precipitate(scene)
    return Drawing(scene.develop(), nucleus > 0.5, (body > 0.5) & (nucleus <= 0.5))


class _Canvas:
    """Optical density gathered on the pixel grid, with the random numbers that everything is drawn by."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        self.unit = size / SIDE
        axis = ((np.arange(size) + 0.5) / self.unit - SIDE / 2).astype(np.float32)
        self.x: Array = axis[None, :]
        self.y: Array = axis[:, None]
        self.density: Array = np.zeros((size, size, 3), np.float32)
        self.stain = rng.normal(1.0, 0.05, 3).astype(np.float32) * np.float32(rng.uniform(0.85, 1.2))

    def add(self, amount: Array, colour: Array) -> None:
        """Add a body: `amount` (H, W) is 1 where the body alone would show its full colour."""
        self.density += amount[:, :, None] * (colour * self.stain)

    def cover(self, distance: Array, softness: float = 1.0) -> Array:
        """The share of each pixel that lies inside, from the signed distance to an edge (negative inside)."""
        slope = np.float32(self.unit / max(softness * self.unit, 1.0))
        covered: Array = np.clip(0.5 - distance * slope, 0, 1)
        return covered

    def noise(self, grain: float) -> Array:
        """Smooth noise of about unit variance whose blobs are `grain` wide."""
        cells = int(SIDE / grain) + 3
        lattice = self.rng.standard_normal((cells, cells), np.float32)
        return 1.5 * _resized(lattice, self.size)

    def dots(self, dots: npt.NDArray[np.float64]) -> Array:
        """Draw the union of discs, (n, 3) of x, y and radius, as coverage."""
        scale = self.unit * SUPERSAMPLING
        picture = Image.new("L", (self.size * SUPERSAMPLING,) * 2)
        pen = ImageDraw.Draw(picture)
        for x, y, r in ((dots + np.array([SIDE / 2, SIDE / 2, 0])) * scale).tolist():
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        covered: Array = np.asarray(picture.reduce(SUPERSAMPLING), np.float32) / np.float32(255)
        return covered

    def develop(self) -> Image.Image:
        """The picture: light through the density, uneven illumination, a soft lens, a noisy sensor."""
        rng = self.rng
        paper = np.array(_BACKGROUND[rng.integers(len(_BACKGROUND))]) + rng.normal(0, 4) + rng.normal(0, 2, 3)
        slope = rng.normal(0, 0.0006, 2)
        light = 1 + slope[0] * self.x + slope[1] * self.y - rng.uniform(0, 2e-5) * (self.x**2 + self.y**2)
        pixels = np.exp(-self.density) * paper.astype(np.float32) * light.astype(np.float32)[:, :, None]
        sharp = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        soft = np.asarray(sharp.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 0.95) * self.unit)), np.float32)
        grain = rng.standard_normal((self.size, self.size, 3), np.float32) * np.float32(rng.uniform(1.0, 2.5))
        return Image.fromarray(np.clip(soft + grain + 0.5, 0, 255).astype(np.uint8))


def _density(*rgb: int) -> Array:
    """The optical density that shows as this colour on a white ground."""
    return -np.log(np.array(rgb, np.float32) / 255)


_BACKGROUND = ((238, 229, 222), (235, 226, 226), (226, 222, 219), (238, 232, 219), (230, 220, 223))
_NUCLEUS = _density(134, 90, 176)
_PALE = _density(236, 222, 232)
_BASOPHILIC = _density(150, 168, 215)
_RED_CELL = _density(230, 192, 184)
_PLATELET = _density(188, 166, 210)
_PLATELET_CORE = _density(150, 100, 178)
_PRECIPITATE = _density(70, 40, 90)
_GRANULES = {
    "fine": _density(176, 92, 160),
    "eosinophilic": _density(232, 150, 128),
    "basophilic": _density(104, 74, 150),
}


def _draw_white_cell(
    scene: _Canvas, cell: Morphology, kind: CellType, centre: npt.NDArray[np.float64], radius: float
) -> tuple[Array, Array]:
    """Draw a cell with a nucleus; returns the coverage of the nucleus and of the whole cell."""
    rng = scene.rng
    outline = _wobbly(scene, centre, radius, kind.outline)
    body = scene.cover(outline, 1.5)
    discs = _nucleus(cell, kind, centre, radius, rng)
    bend = 0.7 * scene.noise(14.0)
    nuclear = np.maximum(_distance(scene, discs) + bend, outline + 0.8)
    nucleus = scene.cover(nuclear, 1.2)

    holes = np.ones_like(body)
    if cell.vacuoles:
        spots = _inside(discs, centre, radius, int(rng.integers(5, 11)), 1.0, rng)
        holes -= 0.9 * scene.dots(np.column_stack([spots, rng.uniform(1.7, 3.2, len(spots))]))

    tone = {"pale": _PALE, "basophilic": _BASOPHILIC}.get(cell.cytoplasm, _density(*kind.tone))
    depth = 1 + 0.12 * scene.noise(5.0) + 0.25 * np.exp(-((outline + 1.5) ** 2) / 4)
    scene.add(body * holes * depth.astype(np.float32), tone)

    density, contrast, grain = kind.chromatin
    mottle = 1 + contrast * np.tanh(1.5 * scene.noise(grain)) + 0.12 * np.exp(-((nuclear + 1.5) ** 2) / 3)
    if cell.cell_class == "immature granulocytes":
        spots = discs[rng.integers(len(discs), size=2), :2] + rng.uniform(-4, 4, (2, 2))
        mottle *= 1 - 0.45 * scene.dots(np.column_stack([spots, rng.uniform(1.8, 2.8, 2)]))
    veil = 1 - 0.6 * (1 - holes)
    scene.add(nucleus * veil * (density * rng.uniform(0.92, 1.08) * mottle).astype(np.float32), _NUCLEUS)

    if cell.granules == "fine":
        spots = _inside(discs, centre, radius, int(rng.integers(45, 75)), 0.5, rng)
        dots = scene.dots(np.column_stack([spots, rng.uniform(0.55, 0.95, len(spots))]))
        scene.add(body * dots * (1 - 0.7 * nucleus), _GRANULES["fine"])
    elif cell.granules == "eosinophilic":
        spots = _inside(discs, centre, radius, int(rng.integers(190, 260)), 0.0, rng)
        dots = scene.dots(np.column_stack([spots, rng.uniform(1.0, 1.6, len(spots))]))
        scene.add(body * holes * dots * (1 - 0.75 * nucleus), _GRANULES["eosinophilic"])
    elif cell.granules == "basophilic":
        angle, far = rng.uniform(0, 2 * np.pi, 70), radius * np.sqrt(rng.uniform(0, 0.92, 70))
        spots = centre + np.column_stack([far * np.cos(angle), far * np.sin(angle)])
        dots = scene.dots(np.column_stack([spots, rng.uniform(1.3, 2.4, 70)]))
        scene.add(body * holes * dots, _GRANULES["basophilic"])
    return nucleus, body


def _nucleus(
    cell: Morphology, kind: CellType, centre: npt.NDArray[np.float64], radius: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """A nucleus whose area fits the cell: a union of discs, (n, 3), each x, y and radius."""
    turn = rng.uniform(0, 2 * np.pi)
    if cell.nucleus == "round":
        stretch = rng.uniform(0.02, 0.14)
        discs = np.array([[t * stretch, 0.0, 1.0] for t in (-1, -0.5, 0, 0.5, 1)])
    elif cell.nucleus == "reniform":
        discs = _arc(rng.uniform(1.7, 2.3), rng.uniform(0.72, 0.8), 15)
    elif cell.nucleus == "band":
        discs = _arc(rng.uniform(3.3, 4.3), rng.uniform(0.36, 0.42), 27)
    else:
        discs = _lobes(int(rng.integers(kind.lobes[0], kind.lobes[1] + 1)), rng)
    if cell.high_ratio:
        share = rng.uniform(0.64, 0.78)
    elif cell.nucleus in {"round", "reniform"}:
        share = rng.uniform(0.30, 0.44)
    else:
        share = rng.uniform(0.27, 0.36)
    discs = discs * radius * np.sqrt(share * np.pi / _area(discs))
    slack = max(0.0, radius * 0.94 - float(np.max(np.hypot(discs[:, 0], discs[:, 1]) + discs[:, 2])))
    drift = turn + np.pi if cell.nucleus == "reniform" else rng.uniform(0, 2 * np.pi)
    shift = slack * rng.uniform(0.2, 0.9)
    cos, sin = np.cos(turn), np.sin(turn)
    x = discs[:, 0] * cos - discs[:, 1] * sin + centre[0] + shift * np.cos(drift)
    y = discs[:, 0] * sin + discs[:, 1] * cos + centre[1] + shift * np.sin(drift)
    return np.column_stack([x, y, discs[:, 2]])


def _arc(span: float, thickness: float, count: int) -> npt.NDArray[np.float64]:
    """Discs along an arc of the unit circle, `span` radians wide, moved so that their mass is at the origin."""
    angle = np.linspace(-span / 2, span / 2, count)
    x = np.cos(angle)
    return np.column_stack([x - x.mean(), np.sin(angle), np.full(count, thickness)])


def _lobes(count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Lobes on an arc, neighbours joined by a thin filament."""
    span = min(1.35 * (count - 1), 4.4)
    angle = np.linspace(-span / 2, span / 2, count) + rng.normal(0, 0.08, count)
    if count == 2:
        angle = np.array([-1.15, 1.15]) + rng.normal(0, 0.1, 2)
    far = rng.normal(1.0, 0.07, count)
    heart = np.column_stack([far * np.cos(angle), far * np.sin(angle)])
    size = rng.uniform(0.46, 0.6, count) * {2: 1.4, 3: 1.2}.get(count, 1.0)
    steps = np.linspace(0, 1, 9)[:, None]
    threads = [first + steps * (second - first) for first, second in pairwise(heart)]
    side = 0.6 * rng.uniform(-1, 1, (count, 2))
    second_discs = np.column_stack([heart + side * size[:, None], size * 0.8])
    thread = np.concatenate(threads)
    discs = np.concatenate(
        [np.column_stack([heart, size]), second_discs, np.column_stack([thread, np.full(len(thread), 0.1)])]
    )
    discs[:, :2] -= heart.mean(axis=0)
    return discs


def _area(discs: npt.NDArray[np.float64]) -> float:
    """The area of a union of discs, counted on a grid of 64 × 64 points."""
    reach = float(np.max(np.abs(discs[:, :2]).max(axis=1) + discs[:, 2]))
    axis = np.linspace(-reach, reach, 64)
    x, y, r = discs.T[:, :, None, None]
    inside = ((axis[None, None, :] - x) ** 2 + (axis[None, :, None] - y) ** 2 < r**2).any(axis=0)
    return float(inside.mean() * (2 * reach) ** 2)


def _distance(scene: _Canvas, discs: npt.NDArray[Any]) -> Array:
    """Signed distance to the edge of a union of discs."""
    x, y, r = discs.astype(np.float32).T[:, :, None, None]
    away: Array = (np.sqrt((scene.x[None] - x) ** 2 + (scene.y[None] - y) ** 2) - r).min(axis=0)
    return away


def _wobbly(scene: _Canvas, centre: npt.NDArray[np.float64], radius: float, unevenness: float) -> Array:
    """Signed distance to the edge of a roughly round body."""
    x, y = scene.x - np.float32(centre[0]), scene.y - np.float32(centre[1])
    angle = np.arctan2(y, x)
    edge = np.ones_like(angle)
    for wave in range(2, 5):
        edge += np.float32(unevenness * scene.rng.normal(0, 1)) * np.cos(wave * angle + scene.rng.uniform(0, 6.28))
    distance: Array = np.hypot(x, y) - np.float32(radius) * edge
    return distance


def _inside(
    discs: npt.NDArray[np.float64],
    centre: npt.NDArray[np.float64],
    radius: float,
    count: int,
    margin: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """At most `count` random points of the cell, those of the cytoplasm first."""
    angle, far = rng.uniform(0, 2 * np.pi, 600), (radius - 1.5 - margin) * np.sqrt(rng.uniform(0, 1, 600))
    points = centre + np.column_stack([far * np.cos(angle), far * np.sin(angle)])
    gaps = np.hypot(*(points[:, None, :] - discs[None, :, :2]).transpose(2, 0, 1)) - discs[None, :, 2]
    return points[np.argsort(gaps.min(axis=1) < margin, kind="stable")][:count]


def _draw_red_cells(scene: _Canvas, centre: npt.NDArray[np.float64], reach: float, clump: bool) -> None:
    """Red cells around the central one, apart from each other; a clump's cells lie over one another and over it."""
    rng = scene.rng
    placed: list[tuple[float, float, float]] = []
    if clump:
        heading, count = rng.uniform(0, 2 * np.pi), int(rng.integers(3, 6))
        for index in range(count):
            radius = rng.uniform(14.0, 17.0)
            away = reach + radius * rng.uniform(0.3, 0.85)
            along = 15.0 * (index - (count - 1) / 2) + rng.uniform(-3, 3)
            x = centre[0] + away * np.cos(heading) - along * np.sin(heading)
            placed.append((x, centre[1] + away * np.sin(heading) + along * np.cos(heading), radius))
    for _ in range(14):
        radius = rng.uniform(14.0, 18.0)
        x, y = rng.uniform(-56, 56, 2)
        if np.hypot(x - centre[0], y - centre[1]) < reach + radius - 1:
            continue
        if all(np.hypot(x - a, y - b) > radius + r - 1 for a, b, r in placed):
            placed.append((x, y, radius))
    tint = np.float32(rng.uniform(0.8, 1.2))
    for x, y, radius in placed:
        squeeze, turn = rng.uniform(0.85, 1.0), rng.uniform(0, np.pi)
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        dx, dy = scene.x - np.float32(x), scene.y - np.float32(y)
        far = np.hypot(dx * cos + dy * sin, (dy * cos - dx * sin) / np.float32(squeeze))
        hollow = np.float32(rng.uniform(0.35, 0.85)) * np.exp(-((far / np.float32(radius * 0.52)) ** 2))
        scene.add(scene.cover(far - np.float32(radius), 1.5) * (1 - hollow) * tint, _RED_CELL)


def _platelet_group(
    centre: npt.NDArray[np.float64], radius: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """The platelets of a platelet image: one, or a clump of touching smaller ones."""
    if rng.random() < 0.6:
        return np.array([[*centre, radius]])
    count = int(rng.integers(2, 6))
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 2 * np.pi)
    far = 7.5 * rng.uniform(0.75, 1.1, count)
    spots = centre + np.column_stack([far * np.cos(angle), far * np.sin(angle)])
    return np.column_stack([spots, rng.uniform(5.0, 7.5, count)])


def _nearby_platelets(
    centre: npt.NDArray[np.float64], reach: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """One to three platelets outside the cell and inside the picture."""
    angle = rng.uniform(0, 2 * np.pi, 60)
    far = reach + rng.uniform(7, 20, 60)
    spots = centre + np.column_stack([far * np.cos(angle), far * np.sin(angle)])
    spots = spots[np.abs(spots).max(axis=1) < SIDE / 2 - 6]
    spots = spots[: int(rng.integers(1, 4))]
    return np.column_stack([spots, rng.uniform(4.5, 7.0, len(spots))])


def _draw_platelets(scene: _Canvas, platelets: npt.NDArray[np.float64], *, tone: Array, granular: bool) -> Array:
    """Draw platelets: a lilac body with a darker, granular core; returns their coverage."""
    rng = scene.rng
    covered = np.zeros((scene.size, scene.size), np.float32)
    for x, y, radius in platelets:
        outline = _wobbly(scene, np.array([x, y]), radius, CELL_TYPES["platelet"].outline)
        body = scene.cover(outline, 2.0)
        scene.add(body * 1.1, tone)
        if granular:
            angle, far = rng.uniform(0, 2 * np.pi, 22), radius * 0.75 * np.sqrt(rng.uniform(0, 1, 22))
            spots = np.column_stack([x + far * np.cos(angle), y + far * np.sin(angle)])
            dots = scene.dots(np.column_stack([spots, rng.uniform(0.6, 1.2, 22)]))
            core = scene.cover(outline + np.float32(0.35 * radius), 4.0)
            scene.add(body * (0.6 * dots + 0.45 * core), _PLATELET_CORE)
        covered = np.maximum(covered, body)
    return covered


def _draw_precipitate(scene: _Canvas) -> None:
    """Stain that fell out: dark grains in one or two loose heaps, anywhere."""
    rng = scene.rng
    for _ in range(int(rng.integers(1, 3))):
        count = int(rng.integers(14, 30))
        spots = rng.uniform(-38, 38, 2) + rng.normal(0, rng.uniform(4, 9), (count, 2))
        scene.add(scene.dots(np.column_stack([spots, rng.uniform(0.6, 1.7, count)])), _PRECIPITATE)


def _resized(field: Array, size: int) -> Array:
    picture = Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32)
