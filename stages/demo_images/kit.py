"""`kit`: a tray that must hold a bolt, three washers and two nuts, each in its place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stages.demo_images.scene import (
    SUPER,
    BoolArray,
    ByteArray,
    FloatArray,
    bevel,
    box_sdf,
    children,
    cover,
    dust,
    expose,
    hexagon_sdf,
    paint,
    pick,
    smooth_noise,
    srgb,
    to_mask,
    window,
)

DEFECTS = ("extra_part", "missing_part", "swapped")

TRAY = srgb(66, 74, 84)
BENCH = srgb(150, 148, 144)
FINISHES = {"steel": srgb(172, 176, 180), "brass": srgb(200, 164, 88), "black": srgb(52, 52, 55)}
REACH = {"bolt": 0.27, "washer": 0.064, "nut": 0.068}  # from the centre to the farthest point
# How far a part may lie from its place, across and along its compartment.
STRAY = {"bolt": (0.03, 0.06), "washer": (0.04, 0.045), "nut": (0.04, 0.07)}
COMPARTMENTS = ((0.2, 0.5, 0.125, 0.41), (0.5, 0.5, 0.125, 0.41), (0.8, 0.5, 0.125, 0.41))


@dataclass(frozen=True)
class Part:
    """One part: what it is, and where it lies (tray coordinates, radians)."""

    kind: str
    finish: str
    x: float
    y: float
    angle: float = 0.0
    scale: float = 1.0


#: The rule: what lies where in a good kit.
RULE = (
    Part("bolt", "steel", 0.2, 0.5),
    Part("washer", "brass", 0.5, 0.22),
    Part("washer", "steel", 0.5, 0.5),
    Part("washer", "black", 0.5, 0.78),
    Part("nut", "steel", 0.8, 0.3),
    Part("nut", "steel", 0.8, 0.68),
)


@dataclass(frozen=True)
class Pose:
    """How the tray lies under the camera, and where the light comes from (radians)."""

    dx: float
    dy: float
    angle: float
    light: float

    def on_bench(self, x: float, y: float) -> tuple[float, float]:
        """Picture coordinates of a point of the tray."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u, v = x - 0.5, y - 0.5
        return 0.5 + self.dx + u * cos - v * sin, 0.5 + self.dy + u * sin + v * cos


def lay_out(rng: np.random.Generator) -> list[Part]:
    """Draw a good kit: the parts of `RULE`, in that order, each within its stray."""
    parts = []
    for part in RULE:
        dx, dy = rng.uniform(-1, 1, size=2) * STRAY[part.kind]
        angle = rng.uniform(0, 2 * np.pi)
        if part.kind == "bolt":  # along its compartment, the head at either end
            angle = rng.uniform(-0.09, 0.09) + np.pi * rng.integers(2)
        parts.append(replace(part, x=part.x + dx, y=part.y + dy, angle=angle))
    return parts


def _circles(part: Part) -> list[tuple[float, float, float]]:
    """Circles (x, y, radius) that together cover a part: enough to keep parts apart."""
    if part.kind != "bolt":
        return [(part.x, part.y, REACH[part.kind] * part.scale)]
    steps = np.linspace(-0.22, 0.22, 9)
    return [(part.x - s * np.sin(part.angle), part.y + s * np.cos(part.angle), 0.07) for s in steps]


def _free_spot(parts: Sequence[Part], part: Part, rng: np.random.Generator) -> Part:
    """Move a small part to a random spot of the tray where it touches nothing."""
    taken = [circle for other in parts for circle in _circles(other)]
    reach = REACH[part.kind] * part.scale
    while True:  # the nuts alone always leave room
        x, y, half_w, half_h = COMPARTMENTS[int(rng.integers(len(COMPARTMENTS)))]
        x += rng.uniform(reach - half_w, half_w - reach)
        y += rng.uniform(reach - half_h, half_h - reach)
        if all(np.hypot(x - cx, y - cy) > reach + radius for cx, cy, radius in taken):
            return replace(part, x=x, y=y)


def break_rule(
    parts: Sequence[Part], defect: str, rng: np.random.Generator
) -> tuple[list[Part], list[Part]]:
    """Make a good kit wrong: the new parts, and the parts (old and new) that the mask shows."""
    parts = list(parts)
    if defect == "missing_part":
        lost = parts.pop(int(rng.integers(len(parts))))
        return parts, [lost]
    if defect not in DEFECTS:
        raise ValueError(f"unknown defect {defect!r}; have {DEFECTS}")
    if defect == "extra_part":
        model = parts[int(rng.integers(1, len(parts)))]  # any part but the bulky bolt
        angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0)
        extra = _free_spot(parts, replace(model, angle=angle, scale=scale), rng)
        return [*parts, extra], [extra]
    mode = pick(rng, ("exchange", "exchange", "finish"))
    if mode == "finish":  # the right kind in the wrong finish
        index = int(rng.integers(len(parts)))
        others = [name for name in FINISHES if name != parts[index].finish]
        wrong = replace(parts[index], finish=pick(rng, others))
        parts[index] = wrong
        return parts, [wrong]
    pairs = [(1, 2), (1, 3), (2, 3), *((w, n) for w in (1, 2, 3) for n in (4, 5))]
    first, second = pairs[int(rng.integers(len(pairs)))]
    old = [parts[first], parts[second]]
    parts[first] = replace(old[0], x=old[1].x, y=old[1].y)
    parts[second] = replace(old[1], x=old[0].x, y=old[0].y)
    return parts, [*old, parts[first], parts[second]]


def _outline(part: Part, x: FloatArray, y: FloatArray) -> FloatArray:
    """Signed distance to a part's outer silhouette, in its own frame (unit scale)."""
    if part.kind == "washer":
        return np.hypot(x, y) - np.float32(0.064)
    if part.kind == "nut":
        return np.maximum(hexagon_sdf(x, y, 0.061), np.hypot(x, y) - np.float32(0.068))
    head = box_sdf(x, y + np.float32(0.225), 0.066, 0.045, 0.008)
    shank = box_sdf(x, y - np.float32(0.045), 0.034, 0.225, 0.01)
    return np.minimum(head, shank)


def _surface(part: Part, x: FloatArray, y: FloatArray, light: float) -> FloatArray:
    """Brightness of a part's surface away from its edges, in its own frame."""
    if part.kind != "bolt":
        return 1 + np.float32(1.5) * (x * np.float32(np.cos(light)) + y * np.float32(np.sin(light)))
    head = y < -0.18
    facet = np.where(np.abs(x) < 0.034, 1.0, 0.68 + 0.12 * np.sign(x))
    across = np.clip(x / np.float32(0.034), -1, 1)
    round_ = np.sqrt(1 - 0.92 * across**2) + 0.35 * np.exp(-(((across + 0.35) / 0.2) ** 2))
    slant = np.float32(2 * np.pi / 0.0165) * (y + np.float32(0.08) * x)
    thread = np.where(y > -0.04, 0.72 + 0.30 * np.sin(slant), 0.95)
    return np.asarray(np.where(head, facet, round_ * thread), dtype=np.float32)


def _place(canvas: FloatArray, part: Part, pose: Pose, gloss: float) -> None:
    """Draw one part with its shadow, in place."""
    size = canvas.shape[0] // SUPER
    centre = pose.on_bench(part.x, part.y)
    spot = window(size, *centre, REACH[part.kind] * part.scale + 0.03)
    angle, scale = part.angle + pose.angle, np.float32(part.scale)
    x, y = (c / scale for c in spot.turned(angle))
    sdf = _outline(part, x, y) * scale
    light = pose.light
    drop = 0.009 * np.array([np.cos(light), np.sin(light)])
    cos, sin = np.cos(angle), np.sin(angle)
    sx = x + np.float32((drop[0] * cos + drop[1] * sin) / part.scale)
    sy = y + np.float32((drop[1] * cos - drop[0] * sin) / part.scale)
    view = spot.of(canvas)
    hole = np.hypot(x, y) * scale
    hole -= np.float32({"washer": 0.030, "nut": 0.034, "bolt": 0.0}[part.kind] * part.scale)
    shadow = np.maximum(_outline(part, sx, sy) * scale, -hole)
    view *= 1 - np.float32(0.6) * cover(shadow, 0.018)[..., None]
    sdf = np.maximum(sdf, -hole) if part.kind != "bolt" else sdf
    shade = _surface(part, x, y, light - angle)
    shade = shade + np.float32(0.55 * gloss) * bevel(sdf, spot.pixel, 0.012, light)
    if part.kind == "nut":  # a tapped hole and a turned face
        shade *= 1 - np.float32(0.45) * cover(hole - np.float32(0.006 * part.scale), 0.004)
        shade *= 1 + np.float32(0.08) * np.sin(np.hypot(x, y) * np.float32(900))
    alpha = cover(sdf, 2 * spot.pixel)
    paint(view, alpha, np.clip(shade, 0.03, None)[..., None] * FINISHES[part.finish])


def _tray(rng: np.random.Generator, size: int, pose: Pose) -> FloatArray:
    """Draw the empty tray: a linear-light canvas (S, S, 3)."""
    place = window(size, 0.5 + pose.dx, 0.5 + pose.dy, 1)
    x, y = place.turned(pose.angle)
    grain = 1 + 0.05 * smooth_noise(rng, x.shape, 120) + 0.03 * smooth_noise(rng, x.shape, 5)
    canvas = np.asarray(grain[..., None] * BENCH, dtype=np.float32)
    rim = box_sdf(x, y, 0.475, 0.465, 0.03)
    canvas *= 1 - np.float32(0.5) * cover(rim - np.float32(0.004), 0.03)[..., None]
    top = 1 + np.float32(0.5) * bevel(rim, place.pixel, 0.012, pose.light)
    paint(canvas, cover(rim, 2 * place.pixel), (grain * top)[..., None] * TRAY * np.float32(1.25))
    for cx, cy, half_w, half_h in COMPARTMENTS:
        place = window(size, *pose.on_bench(cx, cy), half_w + 0.04, half_h + 0.03)
        well = box_sdf(*place.turned(pose.angle), half_w, half_h, 0.025)
        # The walls shade the floor on the lamp's side and catch light on the other.
        wall = bevel(well, place.pixel, 0.03, pose.light)
        floor = (0.85 - 0.55 * np.maximum(wall, 0) + 0.25 * np.maximum(-wall, 0)) * place.of(grain)
        paint(place.of(canvas), cover(well, 2 * place.pixel), floor[..., None] * TRAY)
    return canvas


def render(rng: np.random.Generator, defect: str | None, size: int) -> tuple[ByteArray, BoolArray]:
    """Render one picture (size, size, 3) uint8 of a kit and its mask (size, size) bool."""
    normal, fault, camera = children(rng, 3)
    dx, dy = normal.uniform(-0.008, 0.008, size=2)
    pose = Pose(dx, dy, normal.normal(0, 0.008), normal.normal(-2.2, 0.12))
    parts, concerned = lay_out(normal), list[Part]()
    canvas = _tray(normal, size, pose)
    gloss = normal.uniform(0.7, 1.2)
    if defect is not None:
        parts, concerned = break_rule(parts, defect, fault)
    for part in parts:
        _place(canvas, part, pose, gloss)
    dust(canvas, normal, 3)
    changed = np.zeros(canvas.shape[:2], np.float32)
    for part in concerned:
        spot = window(size, *pose.on_bench(part.x, part.y), REACH[part.kind] * part.scale + 0.03)
        x, y = (c / np.float32(part.scale) for c in spot.turned(part.angle + pose.angle))
        inside = cover(_outline(part, x, y) * np.float32(part.scale), 2 * spot.pixel)
        np.maximum(spot.of(changed), inside, out=spot.of(changed))
    return expose(canvas, camera), to_mask(changed)
