"""How figures are written: one style, words for who does not see them, the same bytes always."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# The plan hashes this file, too: whoever draws depends on it.
STYLE_FILE = Path(__file__).resolve().parents[1] / "params" / "figures.mplstyle"
STYLE: dict[Any, Any] = dict(mpl.rc_params_from_file(STYLE_FILE, use_default_template=False))
COLOURS: tuple[str, ...] = tuple(STYLE["axes.prop_cycle"].by_key()["color"])
PALE, GREY = "#999999", "#444444"  # of lines that only guide the eye; of small print
# How each format names what a figure shows; no date, which would make other bytes of each run.
METADATA: dict[str, dict[str, str]] = {
    "svg": {"title": "Title", "description": "Description", "date": "Date"},
    "pdf": {"title": "Title", "description": "Subject", "date": "CreationDate"},
    "png": {"title": "Title", "description": "Description"},
}


def save(
    figure: Figure,
    folder: Path,
    name: str,
    formats: Iterable[str],
    dpi: int,
    description: str | None = None,
) -> None:
    """Write a figure, drawn under ``STYLE``, in some formats.

    Parameters
    ----------
    figure, folder, name
        What is written, and where: `<folder>/<name>.<format>`.
    formats
        Some of `svg`, `pdf`, `png`.
    dpi
        Pixels per inch.
    description
        What the figure shows, for those who do not see it: goes into each file, and into
        `<name>.txt` beside them.
    """
    if figure.get_layout_engine() is not None:  # laid out once, the same for all formats
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    words = {"title": name, "description": description, "date": None}
    for suffix in formats:
        metadata = {
            key: words[word]
            for word, key in METADATA[suffix].items()
            if word == "date" or words[word] is not None
        }
        figure.savefig(folder / f"{name}.{suffix}", dpi=dpi, metadata=metadata)
    if description is not None:
        (folder / f"{name}.txt").write_text(f"{description}\n", encoding="utf-8")
