"""The contract between algorithms and the benchmark (``docs/adding_an_algorithm.md``)."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# What a batch holds: feature maps, one (N, C, H, W) per layer in the order that the algorithm's
# YAML names them, or images, as a list of one (N, 3, H, W). Float32, on the context's device.
Batch = list[Tensor]


class Loader(Protocol):
    """Batches of training data in the order of one epoch; may be iterated again."""

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...


class Images(Protocol):
    """Random access to images beside the category's own, for who `needs` them."""

    def __len__(self) -> int: ...
    def read(self, rows: Sequence[int]) -> Tensor:
        """Return images (B, 3, H, W), float32, on the context's device."""


@dataclass(frozen=True)
class Context:
    """What an algorithm may know of its surroundings before it sees data."""

    image_size: tuple[int, int]  # (H, W) of the maps it must return
    shapes: tuple[tuple[int, int, int], ...]  # (C, H, W) of each tensor of a batch
    n_train: int
    seed: int
    device: torch.device
    members: int = 1  # backbones whose features a batch holds, one after the other
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # what images were normalised by
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    # Makes the backbone's network, pretrained, frozen, in eval mode: images (N, 3, H, W) -> a list
    # of (N, C, h, w), one for each layer; with layers' numbers as arguments it ends after the last.
    backbone: Callable[..., nn.Module] | None = None
    # What an algorithm `needs` besides (`Algorithm.needs`). Teachers and the base come for
    # prediction, too; of several teachers, keys have the prefix "0.", "1." and so on.
    teacher: Mapping[str, Tensor] | None = None
    base: Algorithm | None = None
    outside: Images | None = None
    textures: Images | None = None

    def pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation of images (..., 3, H, W): pixels in [0, 1]."""
        std, mean = (images.new_tensor(each)[:, None, None] for each in (self.std, self.mean))
        return images * std + mean

    def normalised(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (..., 3, H, W) as batches are."""
        std, mean = (pixels.new_tensor(each)[:, None, None] for each in (self.std, self.mean))
        return (pixels - mean) / std


@dataclass(frozen=True)
class Prediction:
    """Maps (N, H, W) and scores (N,) by method name; higher is more anomalous."""

    maps: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]


class Algorithm(ABC):
    """Base of all algorithms.

    Attributes
    ----------
    inputs
        What batches hold: cached ``features`` or ``images``.
    primary
        The (map method, score method) that the leaderboard shows.
    builds_on_backbone
        Whether an algorithm that reads images starts from a network, ``context.backbone()``.
    needs
        What else it wants; its YAML says which. ``teacher``: tensors that a :class:`Teacher` left,
        trained once for all categories. ``base``: a trained algorithm of the same category and
        seed. ``outside``: normal images of anything else, normalised as batches are. ``textures``:
        photographs of textures with pixels in [0, 1], or none, and generated ones do.
        ``validation``: normal images held out of training, for :meth:`calibrate`.
    shuffle
        Whether training batches come in a new random order each epoch.
    prediction_parameters
        Hyperparameters that only :meth:`predict` reads: a change of one trains nothing anew, since
        training is not even told its value.
    """

    inputs: ClassVar[Literal["features", "images"]]
    primary: ClassVar[tuple[str, str]]
    builds_on_backbone: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    shuffle: ClassVar[bool] = True
    prediction_parameters: ClassVar[tuple[str, ...]] = ()

    def __init__(self, parameters: Any, context: Context) -> None:
        self.parameters = parameters
        self.context = context

    @abstractmethod
    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        """Learn from one pass; return losses by name. Fitting methods do all here, in one epoch."""

    def before_eval(self, loader: Loader) -> None:  # noqa: B027 - optional, empty by default
        """Prepare for prediction after the last epoch; timed as training.

        Training may go on afterwards (the stage ``learning`` does that) and must not notice.
        """

    def calibrate(self, loader: Loader) -> None:  # noqa: B027 - optional, empty by default
        """Set scales by held-out normal images, after :meth:`before_eval`; timed as training.

        Only who needs ``validation`` is asked. Training may go on afterwards, and must not notice.
        """

    @abstractmethod
    def predict(self, batch: Batch) -> Prediction:
        """Score one batch; the result must not depend on how images are batched."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return all that prediction needs."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""

    def training_state(self) -> dict[str, Tensor]:
        """Return what resuming needs beyond :meth:`state` (optimiser moments)."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore what :meth:`training_state` returned."""

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``."""
        save_tensors(self.state(), folder / "model.safetensors")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        self.load_state(load_file(folder / "model.safetensors", device=str(self.context.device)))


class GradientAlgorithm(Algorithm):
    """An algorithm that is a network, an optimiser and a loss.

    Attributes
    ----------
    epoch
        Epochs done, for schedules; part of the training state. Who writes an epoch of its own
        counts it, too.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the training loss of one batch, a scalar."""

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        self.network.train()
        total, images = 0.0, 0
        for batch in loader:
            total += take_step(self.optimizer, self.loss(batch)).item() * len(batch[0])
            images += len(batch[0])
        self.epoch += 1
        return {"loss": total / images}

    def state(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(state)

    def training_state(self) -> dict[str, Tensor]:
        return optimizer_moments(self.optimizer) | {"epoch": torch.tensor(self.epoch)}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        moments = dict(state)
        self.epoch = int(moments.pop("epoch"))
        load_optimizer_moments(self.optimizer, moments)


class Teacher(ABC):
    """What is trained once, on images of all kinds, for algorithms that need a ``teacher``.

    A file ``algorithms/teachers/<kind>.py`` holds one, with its ``Hyperparameters``. Its images are
    ``[(N, 3, H, W)]``, those of its context; who distils a backbone asks ``context.backbone``.

    Attributes
    ----------
    network
        All that is trained, and, as buffers, what :meth:`prepare` finds out.
    optimizer
        Of the network's parameters.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, parameters: Any, context: Context) -> None:
        self.parameters = parameters
        self.context = context

    def prepare(self, loader: Loader) -> None:  # noqa: B027 - optional, empty by default
        """Take statistics of the images before the first step."""

    @abstractmethod
    def loss(self, images: Tensor) -> Tensor:
        """Return the loss of one step on images (N, 3, H, W), a scalar."""

    def state(self) -> dict[str, Tensor]:
        """Return what algorithms get as ``context.teacher``."""
        return dict(self.network.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        self.network.load_state_dict(state)

    def published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate published weights into a :meth:`state`.

        Raises
        ------
        ValueError
            If they are none that this kind of teacher knows.
        """
        raise ValueError(f"{type(self).__name__} knows no published weights")

    def training_state(self) -> dict[str, Tensor]:
        """Return what resuming needs beyond :meth:`state`."""
        return optimizer_moments(self.optimizer)

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`training_state` returned."""
        load_optimizer_moments(self.optimizer, state)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``."""
        save_tensors(self.state(), folder / "model.safetensors")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        self.load_state(load_file(folder / "model.safetensors", device=str(self.context.device)))


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Lower a loss by one step; return it, a scalar, without what is needed to differentiate it."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all of an optimiser's parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def numbered(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join teachers' states as ``Context.teacher`` has them: of several, keys are numbered."""
    if len(states) == 1:
        return dict(states[0])
    return {f"{number}.{key}": v for number, one in enumerate(states) for key, v in one.items()}


def optimizer_moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's moments by parameter number and name, e.g. ``0.exp_avg``."""
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Restore what :func:`optimizer_moments` returned; rates and decays stay."""
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        by_parameter.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors (which wants them contiguous and unshared)."""
    save_file(
        {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, path
    )


AlgorithmT = TypeVar("AlgorithmT", bound=type[Algorithm])
TeacherT = TypeVar("TeacherT", bound=type[Teacher])
_REGISTRY: dict[str, type[Algorithm]] = {}
_TEACHERS: dict[str, type[Teacher]] = {}


def register(name: str) -> Callable[[AlgorithmT], AlgorithmT]:
    """Register a class as the algorithm ``name``, which must be its file's name too."""

    def decorate(cls: AlgorithmT) -> AlgorithmT:
        if name in _REGISTRY and _REGISTRY[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"two algorithms are registered as {name}")
        if cls.__module__.rsplit(".", 1)[-1] != name:
            raise ValueError(f"algorithm {name} must live in algorithms/{name}.py")
        _REGISTRY[name] = cls
        return cls

    return decorate


def register_teacher(kind: str) -> Callable[[TeacherT], TeacherT]:
    """Register a class as the teacher ``kind``, which must be its file's name too."""

    def decorate(cls: TeacherT) -> TeacherT:
        if cls.__module__ != f"algorithms.teachers.{kind}":
            raise ValueError(f"teacher {kind} must live in algorithms/teachers/{kind}.py")
        _TEACHERS[kind] = cls
        return cls

    return decorate


def create_teacher(kind: str, parameters: Mapping[str, Any], context: Context) -> Teacher:
    """Build the teacher ``kind`` with its hyperparameters."""
    module = importlib.import_module(f"algorithms.teachers.{kind}")
    return _TEACHERS[kind](module.Hyperparameters(**parameters), context)


def names() -> list[str]:
    """List the registered algorithms' names, from the files, importing none of them."""
    marker = "@register" + "("
    folder = Path(__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if marker in path.read_text("utf-8"))


def create(
    name: str, parameters: Iterable[tuple[str, Any]] | Mapping[str, Any], context: Context
) -> Algorithm:
    """Build the algorithm ``name`` with its hyperparameters.

    Raises
    ------
    LookupError
        If no such algorithm is registered.
    """
    if name not in names():
        raise LookupError(f"unknown algorithm {name}; known: {', '.join(names())}")
    module = importlib.import_module(f"algorithms.{name}")
    hyperparameters = module.Hyperparameters(**dict(parameters))
    return _REGISTRY[name](hyperparameters, context)
