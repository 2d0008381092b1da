"""What Proportion Localised can be computed with, and named sets of it."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

BoxKind = Literal["axis", "rotated", "visionad"]
Thresholds = Literal["linear", "percentile"]
Direction = Literal["increasing", "both"]


@dataclass(frozen=True)
class Options:
    """How boxes and thresholds are made; the defaults are the paper's.

    Attributes
    ----------
    box : "axis", "rotated" (least area) or "visionad" (its slices, united with the region)
    merge : whether regions whose boxes overlap become one
    thresholds : "linear" in the map's value, or at "percentile" of all values
    direction : "increasing" if higher is more anomalous; "both" tries the reverse too
    min_side : least side of a box as a share of the image's, in (0, 1]
    n_thresholds : how many thresholds, at least 1
    overlap_limit : share of the smaller box above which two are merged, in [0, 1)
    """

    box: BoxKind = "axis"
    merge: bool = False
    thresholds: Thresholds = "linear"
    direction: Direction = "increasing"
    min_side: float = 1 / 8
    n_thresholds: int = 25
    overlap_limit: float = 1 / 3

    def __post_init__(self) -> None:
        for name, kind in (("box", BoxKind), ("thresholds", Thresholds), ("direction", Direction)):
            one_of(name, getattr(self, name), get_args(kind))
        if not isinstance(self.merge, bool):
            raise ValueError(f"merge must be True or False, got {self.merge!r}")
        if not _number(self.min_side) or not 0 < self.min_side <= 1:
            raise ValueError(f"min_side must be above 0 and at most 1, got {self.min_side!r}")
        if not isinstance(self.n_thresholds, Integral) or self.n_thresholds < 1:
            raise ValueError(
                f"n_thresholds must be a whole number of at least 1, got {self.n_thresholds!r}"
            )
        below_one("overlap_limit", self.overlap_limit)


def resolve(preset: str, overrides: Mapping[str, Any]) -> Options:
    """Return the options of a preset, except where an override is not None.

    Raises
    ------
    TypeError
        If there is no such option.
    ValueError
        If there is no such preset, or an option is not as described.
    """
    one_of("preset", preset, PRESETS)
    known = [option.name for option in fields(Options)]
    for name in overrides:
        if name not in known:
            raise TypeError(f"pl has no option {name!r}; {_nearest(name, known)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return replace(PRESETS[preset], **given)


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is among the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(allowed)}, got {value!r}; {_nearest(value, allowed)}"
        )


def below_one(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a number in [0, 1)."""
    if not _number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _nearest(value: Any, allowed: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
    return f"did you mean {' '.join(nearest)!r}?"


_PACKAGE = Options(box="rotated", merge=True, direction="both")
PRESETS = {
    "paper": Options(),
    "package_0_1_1": _PACKAGE,
    "package_0_1_3": replace(_PACKAGE, thresholds="percentile"),
    "visionad": Options(box="visionad", direction="both"),
}
