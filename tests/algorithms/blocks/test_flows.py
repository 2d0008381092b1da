"""The coupling block against FrEIA's, against its formula, and against autograd's Jacobian."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from scipy.stats import ks_2samp, special_ortho_group
from torch import Tensor, nn

from algorithms.blocks.flows import CouplingBlock, random_rotation

SHAPES = [(6,), (7,), (6, 3, 2), (5, 2, 3)]  # fibres and maps, even and odd numbers of channels
CONDITION = 4


def subnet(shape: tuple[int, ...]) -> Any:
    """A constructor of subnets, as wide as data of this shape wants them."""

    def build(channels_in: int, channels_out: int) -> nn.Module:
        layers: tuple[nn.Module, nn.Module]
        if len(shape) == 1:
            layers = nn.Linear(channels_in, 9), nn.Linear(9, channels_out)
        else:
            layers = nn.Conv2d(channels_in, 9, 3, padding=1), nn.Conv2d(9, channels_out, 1)
        return nn.Sequential(layers[0], nn.ReLU(), layers[1])

    return build


def block(cls: Any, shape: tuple[int, ...], conditional: bool, **keywords: Any) -> Any:
    """A block in float64 whose every parameter matters (new ones hardly couple or scale)."""
    torch.manual_seed(3)
    np.random.seed(3)
    dims_c = [(CONDITION, *shape[1:])] if conditional else []
    made = cls([shape], dims_c, subnet_constructor=subnet(shape), affine_clamping=1.9, **keywords)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "subnet" in name:
                parameter.mul_(5)
            elif "global" in name:
                parameter.add_(2 * torch.randn_like(parameter))
    return made.double()


def data(shape: tuple[int, ...], conditional: bool, count: int = 3) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    condition = torch.randn(count, CONDITION, *shape[1:], generator=generator, dtype=torch.float64)
    return x, [condition] if conditional else []


def twins(shape: tuple[int, ...], conditional: bool, soft: bool) -> tuple[Any, Any]:
    """FrEIA's block and ours with equal weights and the same permutation or rotation."""
    theirs = block(AllInOneBlock, shape, conditional)
    ours = block(CouplingBlock, shape, conditional, permute_soft=soft)
    if soft:
        matrix = ours.rotation.reshape(theirs.w_perm.shape)
        theirs.w_perm.data = matrix
        theirs.w_perm_inv.data = matrix.transpose(0, 1)
    return theirs, ours


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


variants = pytest.mark.parametrize(
    ("shape", "conditional", "soft"),
    [(shape, c, s) for shape in SHAPES for c in (False, True) for s in (False, True)],
)


@variants
@pytest.mark.parametrize("rev", [False, True])
def test_block_is_freias(shape: tuple[int, ...], conditional: bool, soft: bool, rev: bool) -> None:
    theirs, ours = twins(shape, conditional, soft)
    x, condition = data(shape, conditional)
    results = []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        (out,), log_determinant = module((leaf,), condition, rev=rev)
        loss = out.pow(3).sum() + log_determinant.square().sum()
        weights = parameters(module)
        gradients = torch.autograd.grad(loss, [leaf, *weights.values()])
        results.append((out, log_determinant, dict(zip(["x", *weights], gradients, strict=True))))
    assert not torch.allclose(results[0][0], x, atol=0.5)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("shape", [(6,), (5, 2, 3)])
def test_permutation_is_freias_of_the_same_seed(shape: tuple[int, ...]) -> None:
    theirs, ours = twins(shape, conditional=False, soft=False)
    matrix = np.zeros((shape[0], shape[0]))
    matrix[np.arange(shape[0]), ours.order] = 1
    np.testing.assert_array_equal(theirs.w_perm.reshape(matrix.shape), matrix)
    assert sorted(parameters(ours)) == sorted(parameters(theirs))
    assert sum(value.numel() for value in ours.buffers()) == 2 * shape[0], "an index, no matrix"


@pytest.mark.parametrize("soft", [False, True])
def test_formula(soft: bool) -> None:
    """FrEIA's main branch has another clamp, so equality with the installed one is not enough."""
    ours = block(CouplingBlock, (7,), conditional=True, permute_soft=soft)
    x, (condition,) = data((7,), conditional=True)
    (out,), log_determinant = ours((x,), [condition])
    first, _, last = (layer for layer in ours.subnet)
    weights = [value.detach().numpy() for layer in (first, last) for value in layer.parameters()]
    x1, x2 = x.numpy()[:, :4], x.numpy()[:, 4:]
    hidden = np.maximum(np.hstack([x1, condition]) @ weights[0].T + weights[1], 0)
    s, t = np.split(hidden @ weights[2].T + weights[3], 2, axis=1)
    log_scale = 1.9 * np.tanh(0.1 * s)
    assert np.ptp(log_scale) > 1
    y = np.hstack([x1, x2 * np.exp(log_scale) + 0.1 * t])
    gain = 0.1 * 2 * np.log1p(np.exp(0.5 * ours.global_scale.detach().numpy()))  # softplus
    y = y * gain + ours.global_offset.detach().numpy()
    expected = y @ ours.rotation.numpy().T if soft else y[:, ours.order.numpy()]
    np.testing.assert_allclose(out.detach(), expected)
    np.testing.assert_allclose(log_determinant.detach(), log_scale.sum(1) + np.log(gain).sum())


def chain(declared: tuple[int, ...], soft: bool) -> SequenceINN:
    """Three blocks with a condition."""
    torch.manual_seed(4)
    np.random.seed(4)
    flow = SequenceINN(*declared)
    for _ in range(3):
        flow.append(
            CouplingBlock,
            cond=0,
            cond_shape=(CONDITION, *declared[1:]),
            subnet_constructor=subnet(declared),
            permute_soft=soft,
        )
    with torch.no_grad():
        for value in parameters(flow).values():
            value.mul_(1.5)
    return flow.double()


# The last: maps larger than declared, as MSFlow has them.
CHAINS = [((6,), (6,)), ((5,), (5,)), ((5, 2, 3), (5, 2, 3)), ((5, 1, 1), (5, 2, 3))]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("declared", "shape"), CHAINS)
def test_inverse_and_jacobian(
    declared: tuple[int, ...], shape: tuple[int, ...], soft: bool
) -> None:
    flow = chain(declared, soft)
    x, condition = data(shape, conditional=True)
    latent, log_determinants = flow(x, condition)
    back, inverse = flow(latent, condition, rev=True)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-6)  # a rotation is kept in float32
    torch.testing.assert_close(inverse, -log_determinants)
    for row in range(len(x)):

        def flat(values: Tensor, row: int = row) -> Tensor:
            return flow(values.reshape(1, *shape), [condition[0][row : row + 1]])[0].flatten()

        jacobian = torch.autograd.functional.jacobian(flat, x[row].flatten())
        expected = torch.linalg.slogdet(jacobian).logabsdet
        assert abs(float(expected)) > 0.1
        torch.testing.assert_close(log_determinants[row], expected, rtol=1e-6, atol=1e-6)


def test_the_condition_counts() -> None:
    flow = chain((6,), soft=False)
    x, (condition,) = data((6,), conditional=True)
    assert not torch.allclose(flow(x, [condition])[0], flow(x, [condition + 1])[0], atol=1e-3)


def test_second_derivative_of_a_permutation() -> None:
    ours = block(CouplingBlock, (6,), conditional=False)
    ours.global_scale.requires_grad_(False)
    x = data((6,), conditional=False)[0].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda values: ours((values,))[0][0], x)


def test_options_of_freia_that_are_not_kept() -> None:
    with pytest.raises(TypeError, match="gin_block"):
        block(CouplingBlock, (6,), conditional=False, gin_block=True)


@pytest.mark.parametrize("soft", [False, True])
def test_seed_decides(soft: bool) -> None:
    def drawn(seed: int) -> Tensor:
        np.random.seed(seed)
        made = CouplingBlock([(50,)], subnet_constructor=subnet((50,)), permute_soft=soft)
        return made.rotation if soft else made.order

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


@pytest.mark.parametrize("soft", [False, True])
def test_state_carries_the_permutation(soft: bool) -> None:
    flow, other = chain((6,), soft), chain((6,), soft)
    np.random.seed(9)
    torch.manual_seed(9)
    fresh = SequenceINN(6)
    for _ in range(3):
        fresh.append(
            CouplingBlock,
            cond=0,
            cond_shape=(CONDITION,),
            subnet_constructor=subnet((6,)),
            permute_soft=soft,
        )
    fresh.double().load_state_dict(other.state_dict())
    x, condition = data((6,), conditional=True)
    latent = flow(x, condition)[0]
    assert torch.equal(fresh(x, condition)[0], latent)
    torch.testing.assert_close(fresh(latent, condition, rev=True)[0], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 40, 112])
def test_rotation(channels: int) -> None:
    rotation = random_rotation(channels, np.random.default_rng(0))
    assert rotation.shape == (channels, channels)
    assert rotation.dtype == np.float32
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(channels), atol=2e-6)
    assert np.linalg.det(rotation.astype(np.float64)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(rotation, random_rotation(channels, np.random.default_rng(0)))


@pytest.mark.parametrize("channels", [3, 4])
def test_rotations_are_uniform(channels: int) -> None:
    """Traces and entries of 3000 rotations against SciPy's (the plain Q of LAPACK's QR fails)."""
    rng = np.random.default_rng(0)
    ours = np.stack([random_rotation(channels, rng) for _ in range(3000)])
    scipys = special_ortho_group(channels, seed=1).rvs(3000)
    for measure in (
        lambda matrices: np.trace(matrices, axis1=1, axis2=2),
        lambda matrices: matrices[:, 0, 0],
        lambda matrices: matrices[:, -1, -1],
        lambda matrices: matrices[:, 0, -1],
    ):
        assert ks_2samp(measure(ours), measure(scipys)).pvalue > 0.001
