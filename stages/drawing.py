"""How figures are written: the same figure gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Of Okabe and Ito: safe for colour-blind eyes, and legible as text on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
# A salt and no date make an SVG the same bytes every time; names are text, not formulas.
STYLE: dict[Any, Any] = {"svg.hashsalt": "visionad", "text.parse_math": False}


def save(figure: Figure, folder: Path, name: str, formats: Iterable[str], dpi: int) -> None:
    """Write a figure, drawn under ``STYLE``, in some formats."""
    for suffix in formats:
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(folder / f"{name}.{suffix}", dpi=dpi, metadata=metadata)
