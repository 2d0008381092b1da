"""One measurement of anomalib's torch models (``against_anomalib.py`` calls it).

Runs in an environment of its own. Its Lightning classes are left out, so a step is written here
as they have it: the same loss, optimiser and order.
"""

# anomalib is not installed where mypy runs:
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from anomalib.models.components import KCenterGreedy
from anomalib.models.image.cfa import torch_model as cfa_module
from anomalib.models.image.cfa.loss import CfaLoss
from anomalib.models.image.cflow.torch_model import CflowModel
from anomalib.models.image.cflow.utils import get_logp, positional_encoding_2d
from anomalib.models.image.fastflow.loss import FastflowLoss
from anomalib.models.image.fastflow.torch_model import FastflowModel
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from measuring import Job, Method, main
from torch import Tensor, nn
from torch.nn import functional


class Peer(Method):
    """A torch model of anomalib's, with the weights that our side has."""

    def __init__(self, model: Any, extractor: nn.Module, job: Job) -> None:
        self.model, self.extractor, self.job = model, extractor, job
        state, wanted = torch.load(job["weights"]), extractor.state_dict()
        extractor.load_state_dict({key: state[key] for key in wanted})

    def features(self, images: Tensor) -> list[Tensor]:
        self.extractor.eval()
        found: Any = self.extractor(images)
        return list(found.values() if isinstance(found, dict) else found)

    def fit(self, batches: Sequence[Tensor]) -> None:
        raise NotImplementedError

    def train(self, batches: Sequence[Tensor]) -> int:
        raise NotImplementedError

    def ready(self) -> None:
        self.model.eval()

    def predict(self, images: Tensor) -> Tensor:
        return self.model(images).anomaly_map


def names(job: Job) -> list[str]:
    """Names of the layers, finest first."""
    return [f"layer{layer}" for layer in job["layers"]]


class Patchcore(Peer):
    """A memory bank of patches."""

    def __init__(self, job: Job, images: Tensor) -> None:
        model = PatchcoreModel(names(job), job["backbone"], pre_trained=False, **job["theirs"])
        super().__init__(model, model.feature_extractor.feature_extractor, job)

    @torch.no_grad()
    def fit(self, batches: Sequence[Tensor]) -> None:
        self.model.train()
        for batch in batches:
            self.model(batch)
        self.model.subsample_embedding(self.job["ratio"])
        self.ready()


class Padim(Peer):
    """A Gaussian per position."""

    def __init__(self, job: Job, images: Tensor) -> None:
        model = PadimModel(job["backbone"], names(job), pre_trained=False, **job["theirs"])
        super().__init__(model, model.feature_extractor.feature_extractor, job)

    @torch.no_grad()
    def fit(self, batches: Sequence[Tensor]) -> None:
        self.model.train()
        for batch in batches:
            self.model(batch)
        self.model.fit()
        self.ready()


class Fastflow(Peer):
    """A flow per layer."""

    def __init__(self, job: Job, images: Tensor) -> None:
        size = tuple(images.shape[-2:])
        model = FastflowModel(size, job["backbone"], pre_trained=False, **job["theirs"])
        super().__init__(model, model.feature_extractor, job)
        self.loss = FastflowLoss()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)

    def train(self, batches: Sequence[Tensor]) -> int:
        self.model.train()
        for batch in batches:
            loss = self.loss(*self.model(batch))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return len(batches)


class Cfa(Peer):
    """A descriptor trained towards a bank of centres."""

    def __init__(self, job: Job, images: Tensor) -> None:
        # It always asks for torchvision's weights, which cannot be had offline.
        models = cfa_module.torchvision.models
        weights, models.get_model_weights = (
            models.get_model_weights,
            lambda name: SimpleNamespace(DEFAULT=None),
        )
        model = cfa_module.CfaModel(job["backbone"], **job["theirs"])
        models.get_model_weights = weights
        super().__init__(model, model.feature_extractor, job)
        theirs = job["theirs"]
        self.loss = CfaLoss(
            theirs["num_nearest_neighbors"], theirs["num_hard_negative_features"], theirs["radius"]
        )
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, weight_decay=5e-4, amsgrad=True
        )

    def train(self, batches: Sequence[Tensor]) -> int:
        self.model.train()
        if not self.model.memory_bank.ndim:
            self.model.initialize_centroid([SimpleNamespace(image=batch) for batch in batches])
        for batch in batches:
            loss = self.loss(self.model(batch))
            self.optimizer.zero_grad()
            loss.backward(retain_graph=True)
            self.optimizer.step()
        return len(batches)


class Cflow(Peer):
    """A conditional flow per layer, over single feature vectors."""

    def __init__(self, job: Job, images: Tensor) -> None:
        model = CflowModel(job["backbone"], names(job), pre_trained=False, **job["theirs"])
        super().__init__(model, model.encoder.feature_extractor, job)
        self.optimizer = torch.optim.Adam(model.decoders.parameters(), lr=1e-4)

    def train(self, batches: Sequence[Tensor]) -> int:
        self.model.decoders.train()
        for batch in batches:
            maps = self.model.encoder(batch)
            for layer, decoder in zip(self.model.pool_layers, self.model.decoders, strict=True):
                self._train_layer(maps[layer].detach(), decoder)
        return len(batches)

    def _train_layer(self, maps: Tensor, decoder: nn.Module) -> None:
        """One step for each part of the shuffled vectors; the last has the remainder, too."""
        count, channels, height, width = maps.shape
        codes = positional_encoding_2d(self.model.condition_vector, height, width)
        condition = codes.permute(1, 2, 0).flatten(0, 1).repeat(count, 1)
        vectors = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        order, size = torch.randperm(len(vectors)), self.model.fiber_batch_size
        parts = list(order.split(size))
        if len(parts) > 1 and len(parts[-1]) < size:
            parts[-2:] = [torch.cat(parts[-2:])]
        for part in parts:
            self.optimizer.zero_grad()
            latent, log_determinant = decoder(vectors[part], [condition[part]])
            likelihood = get_logp(channels, latent, log_determinant) / channels
            (-functional.logsigmoid(likelihood)).mean().backward()
            self.optimizer.step()


METHODS: dict[str, Callable[[Job, Tensor], Method]] = {
    "patchcore": Patchcore,
    "padim": Padim,
    "cfa": Cfa,
    "cflow": Cflow,
    "fastflow2d": Fastflow,
}


def make(job: Job, images: Tensor) -> Method:
    """Build the job's model."""
    return METHODS[job["algorithm"]](job, images)


def choose(rows: Tensor, size: int, dimensions: int | None) -> Tensor:
    """The coreset as its PatchCore makes it, whose projection depends on the rows alone."""
    sampler = KCenterGreedy(rows, sampling_ratio=(size + 0.5) / len(rows))
    return torch.as_tensor(sampler.select_coreset_idxs())


if __name__ == "__main__":
    if sys.argv[1] == "--version":
        print(json.dumps(importlib.metadata.version("anomalib")))
    else:
        main(make, choose)
