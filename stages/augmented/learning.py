"""Measure an algorithm while it learns from augmented images; else as stage `learning`."""

from __future__ import annotations

from typing import Any

from stages import learning
from stages.artifacts.job import Job
from stages.command import Options, run


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write `learning.csv` and the figure."""
    from stages.augmented.readers import open_training

    return learning.body(job, options, open_training)


if __name__ == "__main__":
    run("augmented.learning", __doc__, body)
