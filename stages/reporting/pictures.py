"""The gallery's data: what stages `pictures` and `gallery` have made, by data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.artifacts.files import StageError, read_json
from stages.reporting.site import Site, slug


def gallery_of(
    site: Site, images: Path, parts: Mapping[str, Path], categories: Sequence[str]
) -> dict[str, Any]:
    """Take one data set's strips into the site, and lay out what stands in them.

    Parameters
    ----------
    site
        Gets the strips, below ``gallery/``.
    images
        Folder that stage `pictures` has made.
    parts
        By algorithm, the folder that stage `gallery` has made.
    categories
        In the order of the run.

    Raises
    ------
    StageError
        If an algorithm's maps are not of the images shown.
    """
    shown = read_json(images / "images.json")
    place = f"gallery/{slug(shown['dataset'])}"
    said = {name: read_json(folder / "gallery.json") for name, folder in parts.items()}
    laid_out = []
    for category in categories:
        one = shown["categories"][category]
        ids = [image["id"] for image in one["images"]]
        maps = {}
        for name, folder in parts.items():
            found = said[name]["categories"][category]
            if [image["id"] for image in found["images"]] != ids:
                raise StageError(f"{folder}: {category}: not of the images in {images}; run again")
            maps[name] = {
                "strip": site.take(
                    folder / f"{category}.webp", f"{place}/{slug(name)}/{slug(category)}.webp"
                ),
                "scale": found["scale"],
                "iou_limit": found["iou_limit"],
                "scores": [image["score"] for image in found["images"]],
                "shares": [image["share"] for image in found["images"]],
                "overlaps": [image["overlaps"] for image in found["images"]],
            }
        laid_out.append(
            {
                "category": category,
                "test_images": one["test_images"],
                "strip": site.take(
                    images / f"{category}.webp", f"{place}/images/{slug(category)}.webp"
                ),
                "images": one["images"],
                "maps": maps,
            }
        )
    return {"categories": laid_out}
