"""The discrete model: codes and their updates against NumPy, wiring, sizes, the authors' weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Context, create_teacher
from algorithms.blocks.discrete import (
    Codebook,
    DiscreteModel,
    Residual,
    blown_up,
    other_codes,
    plant,
    pooled,
    restored,
    spoil,
    straight_through,
)
from algorithms.teachers.discrete import Hyperparameters, translated

SMALL = {"hidden": 8, "residual_hidden": 4, "residual_layers": 1, "dimensions": 6, "codes": 20}


@pytest.fixture
def model() -> DiscreteModel:
    torch.manual_seed(0)
    result = DiscreteModel(**SMALL)
    for book in (result.codebook_lo, result.codebook_hi):
        book.codes.mul_(0.1)  # of the features' size, so that they choose many codes
    return result.eval().requires_grad_(False)


def codebook(codes: np.ndarray, restart: float = 0.0) -> Codebook:
    book = Codebook(*codes.shape, decay=0.9, restart=restart)
    book.codes.copy_(torch.from_numpy(codes))
    book.counts.fill_(2.0)
    book.sums.copy_(2 * book.codes)
    return book


def squared(vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return ((vectors[:, None] - codes[None]) ** 2).sum(axis=2)


def as_rows(features: Tensor) -> np.ndarray:
    """(N, D, h, w) as (N h w, D)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).numpy()


# --- codebooks ------------------------------------------------------------------------------------


def test_nearest_code(rng: np.random.Generator) -> None:
    codes = rng.normal(size=(30, 5)).astype(np.float32)
    features = torch.from_numpy(rng.normal(size=(3, 5, 4, 6)).astype(np.float32))
    book = codebook(codes).eval()
    expected = squared(as_rows(features), codes).argmin(axis=1)
    assert book.nearest(features).flatten().tolist() == expected.tolist()
    np.testing.assert_array_equal(as_rows(book(features)), codes[expected])
    np.testing.assert_array_equal(book.codes.numpy(), codes)  # evaluation moves nothing


def test_gradients_pass_the_quantiser() -> None:
    features = torch.randn(2, 3, requires_grad=True)
    codes = torch.randn(2, 3)
    result = straight_through(features, codes)
    torch.testing.assert_close(result.detach(), codes)
    result.square().sum().backward()
    torch.testing.assert_close(features.grad, 2 * codes)


def test_codes_follow_their_features(rng: np.random.Generator) -> None:
    codes = rng.normal(size=(6, 4)).astype(np.float32)
    features = torch.from_numpy(rng.normal(size=(2, 4, 3, 3)).astype(np.float32))
    book = codebook(codes).train()
    result = book(features)
    vectors = as_rows(features)
    chosen = squared(vectors, codes).argmin(axis=1)
    np.testing.assert_array_equal(as_rows(result), codes[chosen])  # those before the step
    for number, code in enumerate(codes):
        mine = vectors[chosen == number]
        count = 0.9 * 2 + 0.1 * len(mine)
        total = 0.9 * 2 * code + 0.1 * mine.sum(axis=0)
        assert float(book.counts[number]) == pytest.approx(count, rel=1e-5)
        np.testing.assert_allclose(book.codes[number], total / count, rtol=1e-4, atol=1e-5)


def test_unused_codes_start_anew(rng: np.random.Generator) -> None:
    codes = rng.normal(size=(5, 4)).astype(np.float32)
    features = torch.from_numpy(10 + rng.normal(size=(1, 4, 4, 5)).astype(np.float32))
    book = codebook(codes, restart=0.25).train()  # 20 features for 5 codes: below a count of 1
    book.counts.copy_(torch.tensor([2.0, 0.5, 2.0, 0.999, 1.0]))
    book.decay = 1.0  # so that only the restart moves codes
    book.sums.copy_(book.codes * book.counts[:, None])
    book(features)
    vectors = {tuple(row) for row in as_rows(features).round(3).tolist()}
    renewed = [tuple(row) in vectors for row in book.codes.numpy().round(3).tolist()]
    assert renewed == [False, True, False, True, False]
    np.testing.assert_allclose(book.counts, [2, 1, 2, 1, 1])
    np.testing.assert_allclose(book.codes[[0, 2, 4]], codes[[0, 2, 4]], rtol=1e-5)


def test_first_step_puts_all_codes_on_features() -> None:
    torch.manual_seed(0)
    features = 50 + torch.randn(1, 4, 6, 6)
    book = Codebook(8, 4, decay=0.99, restart=0.03).train()
    result = book(features)
    assert (book.codes > 40).all()
    vectors = {tuple(row) for row in as_rows(features).round(3).tolist()}
    assert {tuple(row) for row in as_rows(result).round(3).tolist()} <= vectors
    assert len({tuple(row) for row in as_rows(result).tolist()}) == 8  # no vector drawn twice


# --- the model ------------------------------------------------------------------------------------


def test_residual_skip_carries_the_relu(rng: np.random.Generator) -> None:
    layer = Residual(3, 2)
    x = torch.from_numpy(rng.normal(size=(1, 3, 5, 5)).astype(np.float32))
    r = x.clamp(min=0)
    hidden = functional.conv2d(r, layer.narrow.weight, padding=1).clamp(min=0)
    expected = r + functional.conv2d(hidden, layer.widen.weight)
    torch.testing.assert_close(layer(x), expected)
    layer.widen.weight.data.zero_()
    assert (layer(x) >= 0).all()


def test_authors_sizes() -> None:
    with torch.device("meta"):
        model = DiscreteModel().eval()
        lo, hi = model.quantise(torch.zeros(1, 3, 256, 256))
        drawn = model.decode(lo, hi)
    assert lo.shape == (1, 128, 32, 32) and hi.shape == (1, 128, 64, 64)
    assert drawn.shape == (1, 3, 256, 256)

    def conv(before: int, after: int, kernel: int, bias: bool = True) -> int:
        return before * after * kernel**2 + bias * after

    stack = 2 * (conv(128, 64, 3, False) + conv(64, 128, 1, False))
    expected = {
        "encoder_hi": conv(3, 64, 4) + conv(64, 128, 4) + conv(128, 128, 3) + stack,
        "encoder_lo": conv(128, 128, 4) + conv(128, 128, 3) + stack,
        "to_lo": conv(128, 128, 1),
        "to_hi": conv(256, 128, 1),
        "up": conv(128, 128, 4),
        "decoder": conv(256, 128, 3) + stack + conv(128, 64, 4) + conv(64, 3, 4),
    }
    counted = {
        name: sum(one.numel() for one in part.parameters())
        for name, part in model.named_children()
        if not name.startswith("codebook")
    }
    assert counted == expected
    assert model.codebook_lo.codes.shape == model.codebook_hi.codes.shape == (4096, 128)


def test_forward_is_what_quantise_and_decode_give(model: DiscreteModel) -> None:
    images = torch.rand(2, 3, 32, 64)
    drawn, commitment = model(images)
    lo, hi = model.quantise(images)
    assert lo.shape == (2, 6, 4, 8) and hi.shape == (2, 6, 8, 16)
    torch.testing.assert_close(drawn, model.decode(lo, hi))
    encoded, features_lo = model.encode(images)
    features_hi = model.hi_features(encoded, lo)
    expected = (features_lo - lo).square().mean() + (features_hi - hi).square().mean()
    torch.testing.assert_close(commitment, expected)
    joined = torch.cat([model.up(lo), hi], dim=1)
    torch.testing.assert_close(model.decoder(joined), drawn)


def test_restored_has_the_sizes_of_the_state(model: DiscreteModel) -> None:
    same = restored(model.state_dict())
    assert not same.training and not any(one.requires_grad for one in same.parameters())
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(same(images)[0], model(images)[0])
    deep = DiscreteModel(**SMALL | {"residual_layers": 3, "hidden": 12})
    assert restored(deep.state_dict()).encoder_hi[4].out_channels == 12


# --- the teacher ----------------------------------------------------------------------------------


def context(mean: float = 0.0, std: float = 1.0) -> Context:
    return Context(
        (32, 32), ((3, 32, 32),), 8, 0, torch.device("cpu"), mean=(mean,) * 3, std=(std,) * 3
    )


def test_teacher_loss_has_its_terms_and_undoes_the_normalisation() -> None:
    torch.manual_seed(0)
    teacher = create_teacher("discrete", SMALL | {"commitment": 0.5}, context(0.4, 0.2))
    pixels = torch.rand(3, 3, 32, 32)
    teacher.network.eval()
    drawn, commitment = teacher.network(pixels)
    expected = ((drawn - pixels) ** 2).mean() / 0.06 + 0.5 * commitment
    torch.testing.assert_close(teacher.loss((pixels - 0.4) / 0.2), expected)


def test_teacher_learns() -> None:
    torch.manual_seed(0)
    teacher = create_teacher("discrete", SMALL | {"learning_rate": 3e-3}, context())
    columns = torch.rand(8, 3, 1, 4).repeat_interleave(8, dim=3).expand(8, 3, 32, 32)
    teacher.network.train()
    losses = []
    for _ in range(40):
        loss = teacher.loss(columns)
        teacher.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        teacher.optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_preparation_puts_codes_on_features() -> None:
    torch.manual_seed(0)
    teacher = create_teacher("discrete", SMALL, context())
    images = torch.rand(4, 3, 32, 32)
    teacher.prepare([[images], [images / 0]])  # the first batch alone
    network = teacher.network.eval()
    _, features = network.encode(images)
    distances = squared(network.codebook_lo.codes.numpy(), as_rows(features.detach()))
    assert distances.min(axis=1).max() < 1e-3
    assert len(network.codebook_lo.nearest(features).unique()) > 10  # of 20


def test_teachers_state_is_the_models() -> None:
    teacher = create_teacher("discrete", SMALL, context())
    again = restored(teacher.state())
    images = torch.rand(1, 3, 32, 32)
    teacher.network.eval()
    torch.testing.assert_close(again(images)[0], teacher.network(images)[0])


class TheirStack(nn.Module):
    """Only the names and shapes of the authors' residual stack."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        layer = nn.Module()
        layer._block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, hidden, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )
        self._layers = nn.ModuleList([layer])


def their_weights() -> Iterator[tuple[str, Tensor]]:
    """Random weights of one residual layer under the authors' names."""
    for part, convolutions in {
        "_encoder_b": [nn.Conv2d(3, 4, 4), nn.Conv2d(4, 8, 4), nn.Conv2d(8, 8, 3)],
        "_encoder_t": [nn.Conv2d(8, 8, 4), nn.Conv2d(8, 8, 3)],
        "_decoder_b": [nn.Conv2d(12, 8, 3)],
    }.items():
        for number, layer in enumerate(convolutions, start=1):
            yield from ((f"{part}._conv_{number}.{k}", v) for k, v in layer.state_dict().items())
        stack = TheirStack(8, 4).state_dict()
        yield from ((f"{part}._residual_stack.{key}", value) for key, value in stack.items())
    for name, layer in {
        "_decoder_b._conv_trans_1": nn.ConvTranspose2d(8, 4, 4),
        "_decoder_b._conv_trans_2": nn.ConvTranspose2d(4, 3, 4),
        "_pre_vq_conv_top": nn.Conv2d(8, 6, 1),
        "_pre_vq_conv_bot": nn.Conv2d(14, 6, 1),
        "upsample_t": nn.ConvTranspose2d(6, 6, 4),
    }.items():
        yield from ((f"{name}.{key}", value) for key, value in layer.state_dict().items())
    for level in ("top", "bot"):
        yield f"_vq_vae_{level}._embedding.weight", 0.1 * torch.randn(20, 6)
        yield f"_vq_vae_{level}._ema_cluster_size", torch.rand(20)
        yield f"_vq_vae_{level}._ema_w", torch.rand(20, 6)


def test_authors_weights_come_to_their_layers() -> None:
    torch.manual_seed(0)
    weights = dict(their_weights())
    teacher = create_teacher("discrete", SMALL, context())
    teacher.load_state(teacher.published(weights))
    network = teacher.network.eval()
    torch.testing.assert_close(network.codebook_lo.codes, weights["_vq_vae_top._embedding.weight"])
    images = torch.rand(2, 3, 32, 32)
    # The first layer reads BGR, the last one writes it.
    first = weights["_encoder_b._conv_1.weight"], weights["_encoder_b._conv_1.bias"]
    torch.testing.assert_close(
        network.encoder_hi[0](images), functional.conv2d(images.flip(1), *first, 2, 1)
    )
    hidden = torch.rand(2, 4, 16, 16)
    last = weights["_decoder_b._conv_trans_2.weight"], weights["_decoder_b._conv_trans_2.bias"]
    torch.testing.assert_close(
        network.decoder[4](hidden).flip(1), functional.conv_transpose2d(hidden, *last, 2, 1)
    )


@pytest.mark.parametrize("change", ["foreign", "missing"])
def test_other_weights_are_refused(change: str) -> None:
    weights = dict(their_weights())
    if change == "foreign":
        weights["conv1.weight"] = torch.zeros(1)
    else:
        weights = {key: value for key, value in weights.items() if "upsample_t" not in key}
    with pytest.raises(ValueError, match=r"conv1\.weight" if change == "foreign" else "lack up"):
        translated(weights)


def test_defaults_are_the_authors() -> None:
    values = Hyperparameters()
    assert (values.hidden, values.residual_hidden, values.residual_layers) == (128, 64, 2)
    assert (values.dimensions, values.codes, values.commitment, values.decay) == (
        128, 4096, 0.25, 0.99,
    )  # fmt: skip


# --- anomalies of codes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("reach", "lowest", "highest"), [(0.2, 10, 40), (0.5, 10, 100)])
def test_other_codes_by_their_rank(
    rng: np.random.Generator, reach: float, lowest: int, highest: int
) -> None:
    """Of 200 codes the nearest 10 are passed over; int(0.2 * 200) + 1 are in reach."""
    codes = rng.normal(size=(200, 5)).astype(np.float32)
    features = rng.normal(size=(3000, 5)).astype(np.float32)
    torch.manual_seed(0)
    chosen = other_codes(torch.from_numpy(features), codebook(codes), reach, 0.05).numpy()
    distances = squared(features.astype(np.float64), codes)
    mine = ((features.astype(np.float64) - chosen) ** 2).sum(axis=1)
    ranks = (distances < mine[:, None] - 1e-5).sum(axis=1)
    assert ranks.min() == lowest and ranks.max() == highest
    counts = np.bincount(ranks)[lowest : highest + 1]
    assert counts.std() < 2 * np.sqrt(counts.mean())  # uniform


def test_reach_of_all_codes() -> None:
    """The farthest code is never chosen, nor are there too few to choose from."""
    codes = np.arange(4, dtype=np.float32)[:, None]
    vectors = torch.zeros(100, 1)
    assert set(other_codes(vectors, codebook(codes), 0.999, 0.05).flatten().tolist()) == {0, 1, 2}
    assert set(other_codes(vectors, codebook(codes), 0.0, 0.0).flatten().tolist()) == {0}


def test_spoil_changes_what_is_masked(rng: np.random.Generator) -> None:
    book = codebook(rng.normal(size=(50, 4)).astype(np.float32)).eval()
    features = torch.from_numpy(rng.normal(size=(2, 4, 6, 6)).astype(np.float32))
    quantised = book(features)
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[1, 2:4, 1:5] = True
    result = spoil(features, quantised, book, masks, torch.tensor([0.5, 0.5]), 0.05)
    changed = (result != quantised).any(dim=1)
    assert torch.equal(changed, masks)  # the nearest codes are passed over, so all are changed
    assert {tuple(row) for row in as_rows(result).tolist()} <= {
        tuple(row) for row in book.codes.tolist()
    }


def test_masks_on_grids() -> None:
    masks = torch.zeros(1, 16, 24, dtype=torch.bool)
    masks[0, 5, 17] = True
    cells = pooled(masks, torch.zeros(1, 3, 2, 3))
    expected = np.zeros((2, 3), bool)
    expected[0, 2] = True
    np.testing.assert_array_equal(cells[0], expected)
    again = blown_up(cells, masks.shape)
    np.testing.assert_array_equal(again[0], np.kron(expected, np.ones((8, 8), bool)))


@pytest.mark.parametrize(("low", "high"), [(True, True), (True, False), (False, True)])
def test_plant(model: DiscreteModel, low: bool, high: bool) -> None:
    torch.manual_seed(1)
    images, masks = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 10:13, 40:42] = True  # the second image stays clean
    flags = torch.tensor([low, low]), torch.tensor([high, high])
    reaches = torch.full((2, 2), 0.9)
    made = plant(model, images, masks, *flags, reaches, 0.05)
    clean_lo, clean_hi = model.quantise(images)
    torch.testing.assert_close(made.clean_lo, clean_lo)
    torch.testing.assert_close(made.clean_hi, clean_hi)
    lo_cells, hi_cells = torch.zeros(2, 8, 8).bool(), torch.zeros(2, 16, 16).bool()
    lo_cells[0, 1, 5] = True
    hi_cells[0, 2:4, 10] = True
    assert torch.equal((made.lo != clean_lo).any(dim=1), lo_cells & low)
    encoded, _ = model.encode(images)
    if low and high:  # the spoiled lo, seen through the encoder of hi, which is then spoiled
        expected = model.codebook_hi(model.hi_features(encoded, made.lo))
        assert torch.equal((made.hi != expected).any(dim=1), hi_cells)
    else:
        assert torch.equal((made.hi != clean_hi).any(dim=1), hi_cells & high)
    cells = lo_cells if low else hi_cells
    np.testing.assert_array_equal(
        made.masks, np.kron(cells, np.ones((1, 8, 8) if low else (1, 4, 4), bool))
    )
