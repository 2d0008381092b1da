"""Each check accepts what it should, unchanged, and names what it refuses."""

import numpy as np
import pytest

from visionad_metrics.checks import binary_array, real_array, same_shape


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", "uint8", "int64"])
def test_real_array_keeps_the_dtype_and_copies_nothing(dtype):
    array = np.arange(6, dtype=dtype)
    checked = real_array(array, "scores", axes="N")
    assert checked.dtype == array.dtype
    assert np.shares_memory(checked, array)


def test_lists_are_float64():
    checked = real_array([1.0, 1.0 + 1e-15], "scores", axes="N")
    assert checked.dtype == np.float64
    assert checked[0] != checked[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_real_array_says_where_it_is_not_finite(bad):
    maps = np.zeros((2, 3, 4))
    maps[1, 0, 2] = maps[1, 2, 3] = bad
    message = r"maps must be finite: 2 of 24 values are nan or infinite, the first at \(1, 0, 2\)"
    with pytest.raises(ValueError, match=message):
        real_array(maps, "maps", axes="N H W")


@pytest.mark.parametrize(
    "values",
    [[True, False], ["a", "b"], [1j, 2j], [None, 1.0]],
    ids=["bool", "str", "complex", "object"],
)
def test_real_array_refuses_other_types(values):
    with pytest.raises(TypeError, match="scores must be integers or floats, got dtype"):
        real_array(values, "scores", axes="N")


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
def test_binary_array_becomes_bool(dtype):
    checked = binary_array(np.array([0, 1, 1], dtype), "labels", axes="N")
    assert checked.dtype == bool
    assert checked.tolist() == [False, True, True]


@pytest.mark.parametrize("bad", [255, 2, -1, 0.5, np.nan])
def test_binary_array_refuses_other_values(bad):
    message = f"masks must be bool or 0/1, got the value {bad}; binarise first, as masks > 0"
    with pytest.raises(ValueError, match=message):
        binary_array([[[0, 1, bad]]], "masks", axes="N H W")


def test_binary_array_refuses_other_types():
    with pytest.raises(TypeError, match="labels must be bool or 0/1, got dtype <U4"):
        binary_array(["good", "bad"], "labels", axes="N")


@pytest.mark.parametrize("check", [real_array, binary_array])
def test_axes_are_named(check):
    with pytest.raises(ValueError, match=r"maps must have shape \(N, H, W\), got \(4, 5\)"):
        check(np.zeros((4, 5)), "maps", axes="N H W")
    with pytest.raises(ValueError, match=r"scores must have shape \(N,\), got \(\)"):
        check(0.0, "scores", axes="N")


@pytest.mark.parametrize("check", [real_array, binary_array])
def test_none_and_ragged_lists_are_named(check):
    with pytest.raises(TypeError, match=r"maps must be an array of shape \(N, H, W\), got None"):
        check(None, "maps", axes="N H W")
    with pytest.raises(ValueError, match=r"maps must be an array of shape \(N, H, W\): "):
        check([[[0, 1]], [[0]]], "maps", axes="N H W")


def test_same_shape():
    same_shape(maps=np.zeros((2, 3)), masks=np.ones((2, 3)))
    message = r"maps and masks must have the same shape, but maps has \(2, 3\), masks has \(2, 4\)"
    with pytest.raises(ValueError, match=message):
        same_shape(maps=np.zeros((2, 3)), masks=np.ones((2, 4)))
