"""Train one algorithm on one category with one seed, on augmented images.

All but what is trained on is as in `python -m stages.train`.
"""

from __future__ import annotations

from typing import Any

from stages import train
from stages.artifacts.job import Job
from stages.command import Options, run


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the model and what training said on its way."""
    from stages.augmented.readers import open_training

    return train.body(job, options, open_training)


if __name__ == "__main__":
    run("augmented.train", __doc__, body)
