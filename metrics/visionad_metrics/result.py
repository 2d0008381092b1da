"""What a metric returns."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class MetricResult:
    """A metric's value, or why it has none.

    Attributes
    ----------
    value : finite, or nan where the metric is undefined
    reason : why the metric is undefined; given exactly when ``value`` is nan
    curve : arrays of one length that draw the metric, such as ``fpr`` and ``tpr``
    details : further numbers worth keeping, such as how many images were counted
    """

    value: float
    reason: str | None = None
    curve: dict[str, NDArray[Any]] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if math.isinf(self.value):
            raise ValueError(f"value must be finite or nan, got {self.value}")
        if math.isnan(self.value) != bool(self.reason):
            raise ValueError(
                "a reason must be given when the value is nan and only then, "
                f"got value {self.value} and reason {self.reason!r}"
            )
        lengths = {name: np.shape(points) for name, points in (self.curve or {}).items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of a curve must have one length, got {lengths}")

    def flipped_if_lower(self) -> "MetricResult":
        """Return the ROC result of the other direction where that one's area is larger."""
        flipped = self.value < 0.5
        turned = self.curve and {
            name: 1 - points[::-1] if flipped else points for name, points in self.curve.items()
        }
        value = 1 - self.value if flipped else self.value
        return MetricResult(value, self.reason, turned, {**self.details, "flipped": flipped})

    @classmethod
    def undefined(cls, reason: str) -> Self:
        """Return nan with its reason, such as ``"no defective image"``."""
        return cls(math.nan, reason)
