"""S-T (Uninformed Students): students that know the teacher's descriptors of normal patches only.

Bergmann, Fauser, Sattlegger and Steger, "Uninformed Students: Student-Teacher Anomaly Detection
with Discriminative Latent Embeddings", CVPR 2020 (arXiv 1911.02357).

A teacher, taught on images of all kinds (``teachers/patch_network.py``), describes the p x p pixels
around each pixel by T, 128 numbers, here in units of their mean and standard deviation over all
pixels of the normal training images. Three students of the same architecture, started from
different random numbers, learn to say the same of normal images:

    loss = sum_students  mean_pixels |S_i - T|^2.

Around a defect they are wrong, and each in its own way, which gives two maps

    e = |mean_i S_i - T|^2        (error),
    v = mean_i |S_i|^2 - |mean_i S_i|^2        (uncertainty),

each reduced to mean 0 and standard deviation 1 over all pixels of held-out normal images and added.
With several teachers, p = 17, 33 and 65 by default, each has its students, and the map is the mean
over teachers. Its maximum is the image score.

Verified
--------
Dense descriptors against those of patches that were cut out, one by one; error and uncertainty, the
normalisations of both kinds and the mean over scales against NumPy.

Note
----
There is no code of the authors. Where two unofficial ones differ, this follows the paper, as far as
known from memory: students regress the descriptor and not what is decoded from it, the error is
squared, held-out images give the units of maps. Outside of the image there is zero, as in both. The
image score is ours. With ``stride`` above 1 pixels in between are interpolated; with
``training_stride`` or ``window`` a step learns from some pixels, drawn anew each time, instead of
from all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algorithms.base import Batch, Context, GradientAlgorithm, Loader, Prediction, register
from algorithms.blocks.dense_patches import PatchNetwork, restore, surround
from algorithms.blocks.maps import upsample


@dataclass(frozen=True)
class Hyperparameters:
    """The paper's values."""

    students: int = 3  # M, for each teacher
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    stride: int = 1  # of the pixels whose descriptors are compared
    training_stride: int = 1  # of those that a step learns from
    window: int | None = None  # side of the part of an image that a step learns from; null: all


def split_teachers(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Part the tensors of one teacher, or of several with prefixes ``0.``, ``1.`` and so on."""
    if "receptive_field" in tensors:
        return [dict(tensors)]
    parts: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        parts.setdefault(int(number), {})[name] = value
    return [parts[number] for number in sorted(parts)]


def error_and_uncertainty(teacher: Tensor, students: Tensor) -> Tensor:
    """Maps e and v (2, N, h, w) of descriptors (N, D, h, w) and (M, N, D, h, w)."""
    mean = students.mean(dim=0)
    error = (mean - teacher).square().sum(dim=1)
    # The mean of squares minus the square of the mean, without their cancellation.
    return torch.stack([error, (students - mean).square().sum(dim=2).mean(dim=0)])


def draw_part(side: int, stride: int, window: int | None) -> tuple[int, int]:
    """Draw the first of the pixels that a step learns from, along one side, and their extent.

    They lie ``stride`` apart, and in the whole image (None) or within a window. A window is drawn
    from all that reach a pixel, and moved into the image: else borders were hardly ever seen.
    """
    if window is None or window >= side:
        start = int(torch.randint(stride, ()))
        return start, side - start
    length = (window - 1) // stride * stride + 1
    last = side - length
    start = int(torch.randint(1 - length, side, ()))
    steps = -(start // stride) if start < 0 else min((last - start) // stride, 0)
    return min(max(start + steps * stride, 0), last), length


class Moments:
    """Mean and population standard deviation of each row of what is added, in float64."""

    def __init__(self) -> None:
        self.count, self.sums, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Add values (K, P)."""
        values = values.double()
        self.count += values.shape[1]
        self.sums = self.sums.to(values) + values.sum(dim=1)
        self.squares = self.squares.to(values) + values.square().sum(dim=1)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return both, (K,), float32; of a row that is constant but for rounding, a deviation 1."""
        mean = self.sums / self.count
        deviation = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        constant = deviation <= 1e-6 * mean.abs()
        return mean.float(), torch.where(constant, 1.0, deviation).float()


class Scale(nn.Module):
    """One teacher, frozen, and its students."""

    def __init__(self, tensors: Mapping[str, Tensor], students: int, context: Context) -> None:
        super().__init__()
        p = int(tensors["receptive_field"])
        self.teacher = restore(tensors, p, "patches.")
        self.teacher.requires_grad_(False)
        self.students = [PatchNetwork(p, self.teacher.channels) for _ in range(students)]
        self.ensemble = nn.ModuleList(self.students)
        # From images as this algorithm has them to images as the teacher learned them.
        std = torch.tensor(context.std)[:, None, None] / tensors["std"].cpu()
        mean = torch.tensor(context.mean)[:, None, None] - tensors["mean"].cpu()
        self.factor: Tensor
        self.offset: Tensor
        self.register_buffer("factor", std)
        self.register_buffer("offset", mean / tensors["std"].cpu())
        self.descriptor_mean: Tensor
        self.descriptor_std: Tensor
        self.register_buffer("descriptor_mean", torch.zeros(self.teacher.channels[-1], 1, 1))
        self.register_buffer("descriptor_std", torch.ones(self.teacher.channels[-1], 1, 1))
        self.map_mean: Tensor
        self.map_std: Tensor
        self.register_buffer("map_mean", torch.zeros(2, 1, 1, 1))
        self.register_buffer("map_std", torch.ones(2, 1, 1, 1))

    def prepared(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in the teacher's units, with zeros around them."""
        return surround(images * self.factor + self.offset, self.teacher.receptive_field)

    def target(self, prepared: Tensor, stride: int) -> Tensor:
        """What students shall say of prepared images: (N, D, h, w)."""
        described = self.teacher.slide(prepared, stride)
        return (described - self.descriptor_mean) / self.descriptor_std

    def maps(self, prepared: Tensor, stride: int) -> Tensor:
        """Error and uncertainty (2, N, h, w), in no units yet."""
        students = torch.stack([student.slide(prepared, stride) for student in self.students])
        return error_and_uncertainty(self.target(prepared, stride), students)


@register("student_teacher")
class StudentTeacher(GradientAlgorithm):
    """Ensembles of students, one for each teacher; see the module's text."""

    inputs = "images"
    needs = ("teacher", "validation")
    primary = ("combined", "maximum")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        assert context.teacher is not None
        teachers = split_teachers(context.teacher)
        self.scales = [Scale(tensors, parameters.students, context) for tensors in teachers]
        self.network = nn.ModuleList(self.scales).to(context.device)
        self.optimizer = torch.optim.Adam(
            [one for one in self.network.parameters() if one.requires_grad],
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
        )

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        if not self.epoch:
            self._measure_descriptors(loader)
        total, images = 0.0, 0
        for batch in loader:
            self.optimizer.zero_grad(set_to_none=True)
            for loss in self._losses(batch[0]):  # one student's activations at a time
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item() * len(batch[0])
            self.optimizer.step()
            images += len(batch[0])
        self.epoch += 1
        return {"loss": total / images / len(self.scales) / self.parameters.students}

    def loss(self, batch: Batch) -> Tensor:
        return torch.stack(list(self._losses(batch[0]))).sum()

    def _losses(self, images: Tensor) -> Iterator[Tensor]:
        """Each student's mean over pixels of |S - T|^2."""
        stride, window = self.parameters.training_stride, self.parameters.window
        for scale in self.scales:
            margin = scale.teacher.receptive_field - 1
            part = scale.prepared(images)
            for dimension in (2, 3):
                start, length = draw_part(part.shape[dimension] - margin, stride, window)
                part = part.narrow(dimension, start, length + margin)
            with torch.no_grad():
                target = scale.target(part, stride)
            for student in scale.students:
                yield (student.slide(part, stride) - target).square().sum(dim=1).mean()

    def _prediction_grid(self, scale: Scale, images: Tensor) -> Tensor:
        """Prepared images from where patches lie around the middle of cells of the stride."""
        first = (self.parameters.stride - 1) // 2
        return scale.prepared(images)[:, :, first:, first:]

    @torch.no_grad()
    def _measure_descriptors(self, loader: Loader) -> None:
        moments = [Moments() for _ in self.scales]
        for batch in loader:
            for image in batch[0].split(1):  # whole maps of 128 channels are large
                for scale, one in zip(self.scales, moments, strict=True):
                    part = self._prediction_grid(scale, image)
                    described = scale.teacher.slide(part, self.parameters.stride)
                    one.add(described[0].flatten(1))
        for scale, one in zip(self.scales, moments, strict=True):
            mean, std = one.result()
            scale.descriptor_mean.copy_(mean[:, None, None])
            scale.descriptor_std.copy_(std[:, None, None])

    @torch.no_grad()
    def calibrate(self, loader: Loader) -> None:
        moments = [Moments() for _ in self.scales]
        for batch in loader:
            for image in batch[0].split(1):
                for scale, one in zip(self.scales, moments, strict=True):
                    part = self._prediction_grid(scale, image)
                    one.add(scale.maps(part, self.parameters.stride).flatten(1))
        for scale, one in zip(self.scales, moments, strict=True):
            mean, std = one.result()
            scale.map_mean.copy_(mean[:, None, None, None])
            scale.map_std.copy_(std[:, None, None, None])

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        maps = torch.cat([self._map(image) for image in batch[0].split(1)])
        return Prediction({"combined": maps}, {"maximum": maps.amax(dim=(1, 2))})

    def _map(self, image: Tensor) -> Tensor:
        total = torch.zeros(1, *self.context.image_size, device=image.device)
        for scale in self.scales:
            part = self._prediction_grid(scale, image)
            maps = scale.maps(part, self.parameters.stride)
            combined = ((maps - scale.map_mean) / scale.map_std).sum(dim=0)
            total += upsample(combined, self.context.image_size)
        return total / len(self.scales)
