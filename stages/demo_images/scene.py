"""Drawing, lighting and camera helpers shared by the demo categories.

Scenes are drawn in linear light on a canvas `SUPER` times finer than the picture, in units of the
picture's side (x to the right, y down, both 0..1), and photographed by `expose`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]

SUPER = 2


def children(rng: np.random.Generator, count: int) -> list[np.random.Generator]:
    """Split off `count` independent generators, always by the same draws from `rng`."""
    return [np.random.default_rng(int(seed)) for seed in rng.integers(2**63, size=count)]


def srgb(red: int, green: int, blue: int) -> FloatArray:
    """Linear-light colour, shape (3,), in 0..1, of an 8-bit screen colour."""
    return np.asarray((np.array([red, green, blue]) / 255) ** 2.2, dtype=np.float32)


@lru_cache(maxsize=4)
def _axis(size: int) -> FloatArray:
    fine = size * SUPER
    axis = ((np.arange(fine) + 0.5) / fine).astype(np.float32)
    axis.flags.writeable = False
    return axis


@dataclass(frozen=True)
class Window:
    """Rectangle of a canvas: its slices and its pixels' coordinates from a centre.

    `x` has shape (1, w) and `y` shape (h, 1), float32; `pixel` is the side of a canvas pixel.
    """

    rows: slice
    cols: slice
    x: FloatArray
    y: FloatArray
    pixel: float

    def turned(self, angle: float) -> tuple[FloatArray, FloatArray]:
        """Coordinates (h, w) in a frame turned by `angle` radians."""
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return self.x * cos + self.y * sin, self.y * cos - self.x * sin

    def of(self, canvas: FloatArray) -> FloatArray:
        """View of the canvas (S, S, ...) inside the window."""
        return canvas[self.rows, self.cols]


def window(size: int, x: float, y: float, reach: float, reach_down: float | None = None) -> Window:
    """Window of the canvas about the point (x, y): `reach` across, `reach_down` (or it) down."""
    axis = _axis(size)
    spans = ((y, reach if reach_down is None else reach_down), (x, reach))
    rows, cols = (slice(*np.searchsorted(axis, (c - r, c + r))) for c, r in spans)
    local_x, local_y = axis[None, cols] - np.float32(x), axis[rows, None] - np.float32(y)
    return Window(rows, cols, local_x, local_y, 1 / (size * SUPER))


def cover(sdf: FloatArray, softness: float) -> FloatArray:
    """Opacity 0..1 of the inside of a signed distance, its edge `softness` wide."""
    opacity: FloatArray = np.clip(np.float32(0.5) - sdf / np.float32(softness), 0, 1)
    return opacity


def paint(target: FloatArray, alpha: FloatArray, colour: ArrayLike) -> None:
    """Blend `colour`, (3,) or (h, w, 3), into `target` (h, w, 3) in place, weighted by `alpha`."""
    target += alpha[..., None] * (np.asarray(colour, dtype=np.float32) - target)


def box_sdf(
    x: FloatArray, y: FloatArray, half_width: float, half_height: float, corner: float
) -> FloatArray:
    """Signed distance to a rounded rectangle about the origin (negative inside)."""
    qx = np.abs(x) - np.float32(half_width - corner)
    qy = np.abs(y) - np.float32(half_height - corner)
    outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    return outside + np.minimum(np.maximum(qx, qy), 0) - np.float32(corner)


def hexagon_sdf(x: FloatArray, y: FloatArray, apothem: float) -> FloatArray:
    """Signed distance (exact inside) to a regular hexagon about the origin."""
    ax, ay = np.abs(x), np.abs(y)
    return np.maximum(ax * np.float32(np.sqrt(0.75)) + ay / 2, ay) - np.float32(apothem)


def path_distance(
    x: FloatArray, y: FloatArray, points: NDArray[np.float64]
) -> tuple[FloatArray, FloatArray]:
    """Distance to a polyline (n, 2) of x, y, and the place 0..1 along it that is nearest."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    best, place = np.full(shape, np.inf, np.float32), np.zeros(shape, np.float32)
    segments = len(points) - 1
    for index, ((ax, ay), (bx, by)) in enumerate(pairwise(points)):
        dx, dy = bx - ax, by - ay
        along = ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-12)
        along = np.clip(along, 0, 1).astype(np.float32)
        distance = np.hypot(x - ax - along * dx, y - ay - along * dy).astype(np.float32)
        nearer = distance < best
        best = np.where(nearer, distance, best)
        place = np.where(nearer, (index + along) / segments, place).astype(np.float32)
    return best, place


def wander(
    rng: np.random.Generator, length: float, bend: float, segments: int = 16
) -> NDArray[np.float64]:
    """Random smooth path (segments + 1, 2) about the origin; it turns by `bend` radians."""
    turn = np.cumsum(np.cumsum(rng.normal(size=segments)))
    turn *= bend / max(float(np.ptp(turn)), 1e-9)
    heading = rng.uniform(0, 2 * np.pi) + turn
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (length / segments)
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    return np.asarray(points - middle)


def bevel(sdf: FloatArray, pixel: float, width: float, light: float) -> FloatArray:
    """Shading -1..1 of a rounded edge `width` wide inside a shape, lit from angle `light`."""
    down, right = np.gradient(sdf, pixel)
    edge = np.clip(1 + sdf / np.float32(width), 0, 1) * (sdf < pixel)
    return np.asarray(edge * (right * np.cos(light) + down * np.sin(light)), dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: float) -> FloatArray:
    """Smooth noise of unit order over `shape`, with about `cells` bumps along each side."""
    coarse = rng.normal(size=(int(cells) + 3, int(cells) + 3)).astype(np.float32)
    image = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


def dust(canvas: FloatArray, rng: np.random.Generator, rate: float) -> None:
    """Sprinkle specks and short fibres, in place: harmless, and in good pictures too."""
    size = canvas.shape[0] // SUPER
    for _ in range(rng.poisson(rate)):
        x, y = rng.uniform(0.03, 0.97, size=2)
        fibre = rng.random() < 0.3
        path = wander(rng, rng.uniform(0.01, 0.035) if fibre else 0.002, 1.0, segments=5)
        place = window(size, x, y, 0.03)
        distance, _ = path_distance(place.x, place.y, path)
        radius = rng.uniform(0.0008, 0.0016) if fibre else rng.uniform(0.001, 0.003)
        alpha = cover(distance - np.float32(radius), 0.003) * np.float32(rng.uniform(0.15, 0.5))
        paint(place.of(canvas), alpha, np.full(3, rng.choice([0.05, 0.6])))


def shrink(canvas: FloatArray) -> FloatArray:
    """Mean over blocks of SUPER x SUPER pixels: (S, S, ...) -> (size, size, ...)."""
    rows = canvas[0::SUPER] + canvas[1::SUPER]
    return np.asarray((rows[:, 0::SUPER] + rows[:, 1::SUPER]) / np.float32(SUPER**2))


def to_mask(alpha: FloatArray, threshold: float = 0.25) -> BoolArray:
    """Mask (size, size) of the pixels that an opacity map (S, S) covers by over `threshold`."""
    return np.asarray(shrink(alpha) > threshold)


def expose(canvas: FloatArray, rng: np.random.Generator) -> ByteArray:
    """Photograph a linear-light canvas (S, S, 3): uneven light, lens, sensor and gamma.

    All draws come from `rng` in an order that does not depend on the scene, so that a defective
    picture and its clean twin share the light and the noise. Returns (size, size, 3) uint8.
    """
    image = shrink(canvas)
    size = image.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.12, 0.12, size=2).astype(np.float32)
    falloff = np.float32(rng.uniform(0.02, 0.08))
    light = 1 + slope_x * axis[None] + slope_y * axis[:, None]
    light -= falloff * (axis[None] ** 2 + axis[:, None] ** 2)
    gain = np.exp(rng.normal(0, 0.05)) * np.exp(rng.normal(0, 0.015, size=3))
    image = image * light[..., None] * gain.astype(np.float32)
    image = gaussian_filter(image, (*2 * [rng.uniform(0.45, 0.75)], 0))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    # Shot noise grows with the root of the signal; the constant is the read-out noise.
    image += noise * np.sqrt(np.float32(rng.uniform(4e-5, 1.2e-4)) * (np.abs(image) + 0.05))
    return np.asarray(np.rint(255 * np.clip(image, 0, 1) ** np.float32(1 / 2.2)), dtype=np.uint8)


def spread(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw log-uniformly, so that small (subtle) values are as common as large ones."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Choose one of the names."""
    return options[int(rng.integers(len(options)))]
