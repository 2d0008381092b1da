"""`flange`: a turned steel disc with bolt holes, lying in any rotation."""

from dataclasses import dataclass

import numpy as np

from stages.demo_images.scene import (
    SUPER,
    BoolArray,
    ByteArray,
    FloatArray,
    Window,
    bevel,
    box_sdf,
    children,
    cover,
    dust,
    expose,
    paint,
    path_distance,
    smooth_noise,
    spread,
    srgb,
    to_mask,
    wander,
    window,
)

DEFECTS = ("chip", "missing_hole", "scratch")

RADIUS, HUB, BORE = 0.385, 0.165, 0.085
HOLES, HOLE_CIRCLE, HOLE_RADIUS = 6, 0.272, 0.038
KEYWAY_HALF, KEYWAY_DEPTH = 0.021, 0.118
STEEL = srgb(158, 161, 166)
BENCH = srgb(104, 106, 108)


@dataclass(frozen=True)
class Pose:
    """Where the flange lies, how it is turned, and where the light comes from (radians)."""

    x: float
    y: float
    angle: float
    light: float

    def hole(self, index: int) -> tuple[float, float]:
        """Centre of bolt hole `index`."""
        angle = self.angle + 2 * np.pi * (index + 0.5) / HOLES
        return self.x + HOLE_CIRCLE * np.cos(angle), self.y + HOLE_CIRCLE * np.sin(angle)


def _draw_pose(rng: np.random.Generator) -> Pose:
    x, y = 0.5 + rng.uniform(-0.02, 0.02, size=2)
    return Pose(x, y, rng.uniform(0, 2 * np.pi), rng.normal(-2.2, 0.15))


def _chip_sdf(place: Window, rng: np.random.Generator) -> FloatArray:
    """Signed distance to a ragged bite out of the rim."""
    angle, radius = rng.uniform(0, 2 * np.pi), spread(rng, 0.014, 0.05)
    out = RADIUS + radius * rng.uniform(0.0, 0.45)
    dx, dy = place.x - np.float32(out * np.cos(angle)), place.y - np.float32(out * np.sin(angle))
    shape = (place.y.size, place.x.size)
    ragged = 0.18 * smooth_noise(rng, shape, 14) + 0.10 * smooth_noise(rng, shape, 40)
    return np.asarray(np.hypot(dx, dy) - radius * (1 + ragged), dtype=np.float32)


def _metal_shade(rng: np.random.Generator, place: Window, pose: Pose, r: FloatArray) -> FloatArray:
    """Brightness of the turned faces: fine rings, and the bow-tie gleam that rings give."""
    rings = rng.normal(size=512).astype(np.float32)
    rings += 1.5 * np.repeat(rng.normal(size=64), 8).astype(np.float32)
    ring = rings[np.minimum((r * np.float32(511 / 0.75)).astype(np.int32), 511)]
    gleam_angle = pose.light + rng.normal(0, 0.1)
    cos = place.x * np.float32(np.cos(gleam_angle)) + place.y * np.float32(np.sin(gleam_angle))
    gleam = (cos / (r + np.float32(1e-3))) ** 2
    sharp = np.float32(rng.uniform(0.45, 0.75))
    shade = 0.72 + sharp * gleam**4 + np.float32(0.25) * (1 - gleam) ** 8
    shade *= 1 + np.float32(rng.uniform(0.025, 0.045)) * ring
    return np.asarray(shade * (1 + 0.03 * smooth_noise(rng, r.shape, 6)), dtype=np.float32)


def _sink(
    canvas: FloatArray, metal: FloatArray, place: Window, sdf: FloatArray, pose: Pose
) -> None:
    """Drill a through hole of the given signed distance, with a chamfer, in place."""
    view = place.of(canvas)
    chamfer = 0.007
    outer = sdf - np.float32(chamfer)
    # A chamfer slopes inwards, so its lit side is the far one.
    view *= (
        1 + np.float32(0.7) * bevel(outer, place.pixel, 2 * chamfer, pose.light + np.pi)[..., None]
    )
    wall = bevel(sdf, place.pixel, 0.016, pose.light + np.pi)
    inside = BENCH * np.float32(0.16) + np.maximum(wall, 0)[..., None] * STEEL * np.float32(0.35)
    alpha = cover(sdf, 2 * place.pixel)
    paint(view, alpha, inside)
    place.of(metal)[:] *= 1 - alpha


def _scratch(
    canvas: FloatArray, metal: FloatArray, pose: Pose, rng: np.random.Generator
) -> FloatArray:
    """Score a line into the metal, in place; returns its opacity (S, S)."""
    size = canvas.shape[0] // SUPER
    length, half = spread(rng, 0.08, 0.30), spread(rng, 0.0022, 0.0048)
    angle, r = rng.uniform(0, 2 * np.pi), rng.uniform(0.19, 0.33)
    place = window(size, pose.x + r * np.cos(angle), pose.y + r * np.sin(angle), length / 2 + 0.02)
    distance, along = path_distance(place.x, place.y, wander(rng, length, rng.uniform(0, 0.5)))
    taper = np.sqrt(np.clip(6 * along * (1 - along), 0.05, 1))
    skip = np.clip(0.9 + 0.5 * smooth_noise(rng, distance.shape, 6), 0.3, 1)
    groove = cover((distance - half * taper).astype(np.float32), 0.003) * place.of(metal)
    burr = cover((distance - half * taper - 0.003).astype(np.float32), 0.003) * place.of(metal)
    contrast = spread(rng, 0.55, 1.0)
    view = place.of(canvas)
    view *= 1 - ((burr - groove) * skip * np.float32(0.5 * contrast))[..., None]
    bright = rng.random() < 0.7
    paint(view, (groove * skip * contrast).astype(np.float32), STEEL * (2.3 if bright else 0.25))
    alpha = np.zeros_like(metal)
    place.of(alpha)[:] = np.maximum(groove, burr)
    return alpha


def render(rng: np.random.Generator, defect: str | None, size: int) -> tuple[ByteArray, BoolArray]:
    """Render one picture (size, size, 3) uint8 of a flange and its mask (size, size) bool."""
    if defect not in (None, *DEFECTS):
        raise ValueError(f"unknown defect {defect!r}; have {DEFECTS}")
    normal, fault, camera = children(rng, 3)
    pose = _draw_pose(normal)
    place = window(size, pose.x, pose.y, 1)
    shape = (place.y.size, place.x.size)
    r = np.hypot(place.x, place.y)
    disc = r - np.float32(RADIUS)
    changed = np.zeros(shape, np.float32)

    mottle = 1 + 0.03 * smooth_noise(normal, shape, 5) + 0.02 * smooth_noise(normal, shape, 90)
    canvas = np.asarray(mottle[..., None] * BENCH, dtype=np.float32)
    drop = 0.022
    shadow = np.hypot(
        place.x + np.float32(drop * np.cos(pose.light)),
        place.y + np.float32(drop * np.sin(pose.light)),
    )
    canvas *= 1 - np.float32(0.55) * cover(shadow - np.float32(RADIUS), 0.05)[..., None]

    body, shade = disc, _metal_shade(normal, place, pose, r)
    if defect == "chip":
        chip = _chip_sdf(place, fault)
        rough = 0.85 + 0.35 * smooth_noise(fault, shape, 60)
        depth = spread(fault, 0.004, 0.012)
        fracture = cover(np.abs(chip - np.float32(depth / 2)) - np.float32(depth / 2), 0.003)
        shade = np.asarray(shade + fracture * (rough - shade), dtype=np.float32)
        changed = cover(disc, 0.002) * cover(chip - np.float32(depth), 0.002)
        body = np.maximum(disc, -chip)
    shade += np.float32(0.35) * bevel(disc, place.pixel, 0.012, pose.light)
    hub = np.abs(r - np.float32(HUB))
    lit = (place.x * np.cos(pose.light) + place.y * np.sin(pose.light)) / (r + 1e-3)
    shade *= 1 + np.asarray(0.45 * lit * cover(hub - np.float32(0.006), 0.006), np.float32)
    metal = cover(body, 2 * place.pixel)
    paint(canvas, metal, shade[..., None] * STEEL)

    turned = window(size, pose.x, pose.y, KEYWAY_DEPTH + 0.03)
    kx, ky = turned.turned(pose.angle)
    slot = box_sdf(kx - np.float32(KEYWAY_DEPTH / 2), ky, KEYWAY_DEPTH / 2, KEYWAY_HALF, 0.004)
    bore = np.minimum(np.hypot(turned.x, turned.y) - np.float32(BORE), slot)
    _sink(canvas, metal, turned, bore, pose)
    lost = int(fault.integers(HOLES)) if defect == "missing_hole" else -1
    for index in range(HOLES):
        spot = window(size, *pose.hole(index), HOLE_RADIUS + 0.02)
        sdf = np.hypot(spot.x, spot.y) - np.float32(HOLE_RADIUS)
        if index == lost:
            spot.of(changed)[:] = cover(sdf - np.float32(0.007), 0.004)
            # Most faulty holes were started with too small a drill; the others were forgotten.
            if fault.random() < 0.3:
                continue
            sdf = sdf + np.float32(HOLE_RADIUS * fault.uniform(0.25, 0.75))
        _sink(canvas, metal, spot, sdf, pose)
    if defect == "scratch":
        changed = _scratch(canvas, metal, pose, fault)
    dust(canvas, normal, 2)
    return expose(canvas, camera), to_mask(changed)
