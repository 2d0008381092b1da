"""A result has a finite value or a reason, never both and never neither."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from visionad_metrics import MetricResult


def test_undefined_is_nan_with_its_reason():
    result = MetricResult.undefined("no good image")
    assert math.isnan(result.value)
    assert result.reason == "no good image"


@pytest.mark.parametrize(("value", "reason"), [(0.5, "why"), (math.nan, None), (math.nan, "")])
def test_reason_is_given_exactly_when_undefined(value, reason):
    with pytest.raises(ValueError, match="a reason must be given when the value is nan"):
        MetricResult(value, reason)


def test_infinite_values_are_refused():
    with pytest.raises(ValueError, match="value must be finite or nan, got -inf"):
        MetricResult(-math.inf)


def test_the_arrays_of_a_curve_have_one_length():
    with pytest.raises(ValueError, match="one length"):
        MetricResult(0.5, curve={"fpr": np.zeros(3), "tpr": np.zeros(2)})


def test_results_are_frozen_and_share_no_details():
    first, second = MetricResult(0.5), MetricResult(0.5)
    assert first.details is not second.details
    with pytest.raises(FrozenInstanceError):
        first.value = 1.0
