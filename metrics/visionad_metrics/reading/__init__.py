"""Anomaly maps and masks from files, for the command; metrics themselves only see arrays."""

from visionad_metrics.reading.files import ReadingError
from visionad_metrics.reading.maps import ResizedMaps, StoredMaps, read_maps
from visionad_metrics.reading.masks import read_masks

__all__ = ["ReadingError", "ResizedMaps", "StoredMaps", "read_maps", "read_masks"]
