"""Generated textures, for where no photographs of textures (DTD) are at hand.

A pattern is a field of numbers in [0, 1]: fractal noise, waves (stripes, checks, weaves) or cells
(stones, blobs). A random palette colours it, and some textures change from one to another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from algorithms.base import Images
from algorithms.blocks.perlin import perlin_noise, uniform


def log_uniform(low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return math.exp(uniform(math.log(low), math.log(high)))


def _stretched(field: Tensor) -> Tensor:
    low, high = field.aminmax()
    return (field - low) / (high - low).clamp(min=1e-6)


def fractal(size: tuple[int, int]) -> Tensor:
    """Octaves of Perlin noise, each finer and weaker than the one before: (H, W) in [0, 1]."""
    roughness, ridged = uniform(0.4, 0.9), uniform(0, 1) < 0.3
    first, stretch = torch.randint(0, 4, (2,)).tolist()
    octaves = []
    for number, octave in enumerate(range(first, 7)):
        noise = perlin_noise(size, (2**octave, 2 ** max(0, octave - stretch)))
        octaves.append(roughness**number * (noise.abs() if ridged else noise))
    return _stretched(torch.stack(octaves).sum(dim=0))


def _coordinates(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Coordinates (H, W) along two orthogonal axes of random direction, in pixels."""
    rows, columns = torch.meshgrid(*(torch.arange(side) * 1.0 for side in size), indexing="ij")
    angle = uniform(0, math.pi)
    sine, cosine = math.sin(angle), math.cos(angle)
    return cosine * columns + sine * rows, cosine * rows - sine * columns


def waves(size: tuple[int, int]) -> Tensor:
    """Stripes, checks or a weave, often warped: (H, W) in [0, 1]."""
    period, sharpness = log_uniform(4, 64), log_uniform(0.7, 20)
    warp = uniform(-1, 1) * period * (fractal(size) if uniform(0, 1) < 0.5 else 0)

    def wave(coordinate: Tensor) -> Tensor:
        return torch.tanh(sharpness * torch.sin((coordinate + warp) * (2 * math.pi / period)))

    along, across = _coordinates(size)
    kind = int(torch.randint(3, ()))
    if kind == 0:  # stripes
        return _stretched(wave(along))
    if kind == 1:  # checks
        return _stretched(wave(along) * wave(across))
    over = ((along / period).floor() + (across / period).floor()) % 2 == 0
    return _stretched(torch.where(over, wave(along), wave(across)))  # a weave


def cells(size: tuple[int, int]) -> Tensor:
    """Regions nearest to one of many points (Worley 1996): (H, W) in [0, 1].

    There is one point in each square of a grid, so the nearest lies within the 3 x 3 squares about
    a pixel (but for rare corners).
    """
    spacing = log_uniform(6, 64)
    grid = [math.ceil(side / spacing) + 2 for side in size]  # one square more on every side
    squares = torch.rand(3, *grid)  # where its point lies, down and across, and its shade
    down, across = (torch.arange(side) / spacing + 1 for side in size)
    row, column = down.long(), across.long()
    nearest, chosen = torch.full(size, torch.inf), torch.zeros(size)
    for rows in (row - 1, row, row + 1):
        for columns in (column - 1, column, column + 1):
            point_down, point_across, shade = squares[:, rows][:, :, columns]
            distance = (point_down + (rows - down)[:, None]).square_()
            distance += (point_across + (columns - across)).square_()
            chosen = torch.where(distance < nearest, shade, chosen)
            nearest = torch.minimum(distance, nearest)
    kind = int(torch.randint(3, ()))
    return _stretched((chosen, nearest.sqrt(), chosen * (1 - nearest).clamp(min=0))[kind])


def coloured(field: Tensor) -> Tensor:
    """Colour a field (H, W) by a random palette: (3, H, W) in [0, 1]."""
    colours = int(torch.randint(2, 6, ()))
    palette = torch.rand(3, 1) + uniform(0.1, 0.6) * torch.randn(3, colours)
    place = field * (colours - 1)
    below = place.long().clamp(max=colours - 2)
    palette = palette.clamp(0, 1)
    return palette[:, below].lerp(palette[:, below + 1], place - below)


def _plain_texture(size: tuple[int, int]) -> Tensor:
    pattern = (fractal, waves, cells)[int(torch.randint(3, ()))]
    return coloured(pattern(size))


def generated_texture(size: tuple[int, int]) -> Tensor:
    """Make a random texture (3, H, W) in [0, 1]."""
    texture = _plain_texture(size)
    if uniform(0, 1) < 0.3:  # it passes into another, gradually or along an edge
        along, _ = _coordinates(size)
        mix = _stretched(along) if uniform(0, 1) < 0.5 else fractal(size)
        mix = torch.sigmoid(log_uniform(2, 100) * (mix - uniform(0.3, 0.7)))
        texture = texture.lerp(_plain_texture(size), mix)
    return (texture + uniform(0, 0.1) * torch.randn(size)).clamp(0, 1)  # grain


def texture_source(textures: Images | None, size: tuple[int, int]) -> Tensor:
    """Return a random photograph of a texture, resized, or a generated one if there are none.

    Parameters
    ----------
    textures
        ``context.textures``, pixels in [0, 1].
    size
        (H, W) of the result, (3, H, W).
    """
    if textures is None:
        return generated_texture(size)
    image = textures.read([int(torch.randint(len(textures), ()))])[0]
    return image if image.shape[1:] == size else vision.resize(image, list(size))
