"""Checks of the arrays that metrics are given; every message names the argument.

Axes are written as ``"N H W"``. No check changes a value or its precision.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_REAL_KINDS = "iuf"  # numpy's one-letter kinds: signed, unsigned, floating


def real_array(values: ArrayLike | None, name: str, axes: str, first: int = 0) -> NDArray[Any]:
    """Return ``values`` as an array of finite integers or floats, in the dtype they have.

    ``first`` is the number of the first row, where the values are a part of something larger.

    Raises
    ------
    TypeError
        If the values are not real numbers; bool is refused, as it is likely a mask.
    ValueError
        If the shape has other axes, or a value is nan or infinite.
    """
    array = _array(values, name, axes)
    if array.dtype.kind not in _REAL_KINDS:
        raise TypeError(f"{name} must be integers or floats, got dtype {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum()  # finite only if all are, and half the work of looking at each
    if not np.isfinite(total) and not (finite := np.isfinite(array)).all():
        bad = array.size - np.count_nonzero(finite)
        where = [int(i) for i in np.unravel_index(finite.argmin(), finite.shape)]
        where[0] += first
        raise ValueError(
            f"{name} must be finite: {bad} of {array.size} values are nan or infinite, "
            f"the first at {tuple(where)}"
        )
    return array


def binary_array(values: ArrayLike | None, name: str, axes: str) -> NDArray[np.bool]:
    """Return ``values``, which hold bool or 0/1 of any numeric dtype, as a bool array.

    Raises
    ------
    TypeError
        If the values are neither bool nor real numbers.
    ValueError
        If the shape has other axes, or a value is neither 0 nor 1 (as in masks of 0 and 255).
    """
    array = _array(values, name, axes)
    if array.dtype.kind not in "b" + _REAL_KINDS:
        raise TypeError(f"{name} must be bool or 0/1, got dtype {array.dtype}")
    positive = array.astype(np.bool, copy=False)
    if positive is not array and (other := array[positive != array]).size:
        raise ValueError(
            f"{name} must be bool or 0/1, got the value {other[0]}; binarise first, as {name} > 0"
        )
    return positive


def array_like(values: Any, name: str, axes: str) -> Any:
    """Return what has these axes and can be sliced: an array on disk as it is, all else in memory.

    Raises
    ------
    TypeError, ValueError
        If the values have other axes.
    """
    if isinstance(getattr(values, "dtype", None), np.dtype) and hasattr(values, "shape"):
        _require_axes(values.shape, name, axes)
        return values
    return _array(values, name, axes)


def same_shape(**arrays: Any) -> None:
    """Raise ``ValueError`` unless all arrays, given by name, have one shape."""
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} has {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{' and '.join(arrays)} must have the same shape, but {shapes}")


def rate_limit(limit: float, name: str) -> None:
    """Raise unless ``limit`` is a false positive rate above 0, at most 1."""
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise TypeError(f"{name} must be a number, got {limit!r}")
    if not 0 < limit <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {limit}")


def _array(values: ArrayLike | None, name: str, axes: str) -> NDArray[Any]:
    if values is None:
        raise TypeError(f"{name} must be an array of shape {_shape(axes)}, got None")
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of unequal lengths
        raise ValueError(f"{name} must be an array of shape {_shape(axes)}: {error}") from error
    _require_axes(array.shape, name, axes)
    return array


def _require_axes(shape: tuple[int, ...], name: str, axes: str) -> None:
    if len(shape) != len(axes.split()):
        raise ValueError(f"{name} must have shape {_shape(axes)}, got {shape}")


def _shape(axes: str) -> str:
    return "(" + ", ".join(axes.split()) + ("," if " " not in axes else "") + ")"
