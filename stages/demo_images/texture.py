"""`weave`: a close-up of plain-woven cloth."""

import numpy as np

from stages.demo_images.scene import (
    SUPER,
    BoolArray,
    ByteArray,
    FloatArray,
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

DEFECTS = ("cut", "loose_thread", "stain")

THREADS = 25  # across the picture
WARP = srgb(196, 178, 148)
WEFT = srgb(126, 140, 152)


def _per_thread(rng: np.random.Generator, index: FloatArray, spread_: float) -> FloatArray:
    """Random factor about 1 for each thread, looked up by thread number."""
    table = rng.normal(1, spread_, size=2 * THREADS).astype(np.float32)
    return table[index.astype(np.int32) % len(table)]


def cloth(rng: np.random.Generator, size: int) -> FloatArray:
    """Draw clean cloth: a linear-light canvas (S, S, 3)."""
    place = window(size, 0.5, 0.5, 1)
    shape = (place.y.size, place.x.size)
    x, y = place.turned(rng.normal(0, 0.02))
    scale = np.float32(THREADS * rng.normal(1, 0.01))
    phase_x, phase_y = rng.uniform(THREADS / 2, THREADS, size=2).astype(np.float32)
    sway = np.float32(rng.uniform(0.03, 0.09))
    u = x * scale + phase_x + sway * smooth_noise(rng, shape, 5)
    v = y * scale + phase_y + sway * smooth_noise(rng, shape, 5)
    # The yarn is uneven: its width wavers along each thread.
    thickness = np.float32(rng.normal(0.90, 0.02)) + 0.05 * smooth_noise(rng, shape, 24)
    column, row = np.floor(u), np.floor(v)
    a, b = 2 * (u - column) - 1, 2 * (v - row) - 1
    warp_up = (column + row) % 2 == 0
    across, along = np.where(warp_up, a, b), np.where(warp_up, b, a)
    number = np.where(warp_up, column, row + THREADS)
    height = np.sqrt(np.maximum(1 - (across / thickness) ** 2, 0))
    crown = 1 - np.float32(0.55) * along**2  # the thread dives under its neighbours at |along| = 1
    light = np.float32(rng.uniform(0.08, 0.16))
    twist = np.sin(np.float32(np.pi) * (2 * along + 1.5 * across) + number * 2.4)
    shade = height * crown * (1 - light * across) * (1 + np.float32(0.07) * twist)
    shade *= _per_thread(rng, number, 0.05)
    fibre = rng.standard_normal(shape, dtype=np.float32)
    shade *= 1 + np.float32(0.06) * fibre
    tint = np.exp(rng.normal(0, 0.02, size=(2, 3))).astype(np.float32)
    colour = np.where(warp_up[..., None], WARP * tint[0], WEFT * tint[1])
    below = np.where(warp_up[..., None], WEFT * tint[1], WARP * tint[0])
    # A gap between threads shows the crossing thread, deep in shade.
    depth = np.float32(0.28) * (1 - np.float32(0.6) * along**2)
    return np.asarray(np.maximum(colour * shade[..., None], below * depth[..., None]))


def _cut(canvas: FloatArray, rng: np.random.Generator) -> FloatArray:
    size = canvas.shape[0] // SUPER
    x, y = rng.uniform(0.2, 0.8, size=2)
    length = spread(rng, 0.09, 0.32)
    half, depth = spread(rng, 0.004, 0.012), rng.uniform(0.6, 0.98)
    place = window(size, x, y, length / 2 + 0.04)
    view = place.of(canvas)
    distance, along = path_distance(place.x, place.y, wander(rng, length, rng.uniform(0, 0.9)))
    ragged = 1 + 0.45 * smooth_noise(rng, distance.shape, 3 + 70 * length)
    opening = half * np.sqrt(np.clip(4 * along * (1 - along), 0.02, 1)) * ragged
    gap = cover((distance - opening).astype(np.float32), 0.004)
    # The cloth beside the slit curls up a little and catches the light.
    lip = cover((distance - opening - 0.008).astype(np.float32), 0.008) - gap
    view *= 1 + np.float32(0.35 * depth) * lip[..., None]
    paint(view, gap * np.float32(depth), 0.12 * WEFT)
    alpha = np.zeros(canvas.shape[:2], np.float32)
    place.of(alpha)[:] = np.maximum(gap, lip * np.float32(depth))
    return alpha


def _loose_thread(canvas: FloatArray, rng: np.random.Generator) -> FloatArray:
    size = canvas.shape[0] // SUPER
    x, y = rng.uniform(0.25, 0.75, size=2)
    length = spread(rng, 0.16, 0.55)
    radius, strength = spread(rng, 0.004, 0.0095), rng.uniform(0.5, 0.95)
    place = window(size, x, y, length / 2 + 0.04)
    view = place.of(canvas)
    path = wander(rng, length, rng.uniform(0.5, 4.5), segments=24)
    distance, along = path_distance(place.x, place.y, path)
    shift = np.float32(radius)
    shadow, _ = path_distance(place.x - shift, place.y - shift, path)
    view *= 1 - np.float32(0.5 * strength) * cover(shadow - np.float32(radius), 0.008)[..., None]
    body = cover(distance - np.float32(radius), 0.003)
    colour = (WARP, WEFT)[int(rng.integers(2))] * np.float32(rng.uniform(0.8, 1.15))
    round_ = np.sqrt(np.maximum(1 - (distance / np.float32(radius)) ** 2, 0.15))
    twist = 1 + 0.12 * np.sin(along * np.float32(length * 2 * np.pi / 0.02))
    paint(view, body * np.float32(strength), (round_ * twist)[..., None] * colour)
    alpha = np.zeros(canvas.shape[:2], np.float32)
    place.of(alpha)[:] = np.maximum(body, cover(shadow - np.float32(radius), 0.003))
    return alpha


def _stain(canvas: FloatArray, rng: np.random.Generator) -> FloatArray:
    size = canvas.shape[0] // SUPER
    x, y = rng.uniform(0.2, 0.8, size=2)
    radius = spread(rng, 0.035, 0.13)
    place = window(size, x, y, 2.2 * radius)
    px, py = place.turned(rng.uniform(0, np.pi))
    shape = (place.y.size, place.x.size)
    distance = np.hypot(px, py * np.float32(rng.uniform(1, 1.7)))
    outline = radius * (1 + 0.28 * smooth_noise(rng, shape, 4))
    sdf = (distance - outline).astype(np.float32)
    softness = radius * rng.uniform(0.1, 0.6)
    alpha = cover(sdf, softness)
    strength = spread(rng, 0.45, 1.0)
    dye = np.array([0.55, 0.38, 0.18]) if rng.random() < 0.6 else np.array([0.3, 0.3, 0.32])
    # Liquids leave a darker rim where they dried last.
    rim = 1 + rng.uniform(0, 0.5) * np.exp(-((sdf / (0.12 * radius)) ** 2))
    amount = (alpha * rim * (1 + 0.15 * smooth_noise(rng, shape, 6)))[..., None]
    place.of(canvas)[:] *= np.clip(1 - strength * amount * (1 - dye), 0.05, 1).astype(np.float32)
    full = np.zeros(canvas.shape[:2], np.float32)
    place.of(full)[:] = alpha
    return full


_DRAW = {"cut": _cut, "loose_thread": _loose_thread, "stain": _stain}


def render(rng: np.random.Generator, defect: str | None, size: int) -> tuple[ByteArray, BoolArray]:
    """Render one picture (size, size, 3) uint8 of cloth and its mask (size, size) bool."""
    normal, fault, camera = children(rng, 3)
    canvas = cloth(normal, size)
    dust(canvas, normal, 1.5)
    alpha = np.zeros(canvas.shape[:2], np.float32)
    if defect is not None:
        alpha = _DRAW[defect](canvas, fault)
    return expose(canvas, camera), to_mask(alpha)
