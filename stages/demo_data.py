"""Draw one category of the synthetic demo data set, in MVTec's layout."""

from __future__ import annotations

from typing import Any

from stages.artifacts.files import atomic_path
from stages.artifacts.job import Job
from stages.command import Options, run


def body(job: Job, options: Options) -> dict[str, Any]:
    """Write the category's folder, whole or not at all."""
    from stages.demo_images import write_category

    parameters = job.parameters
    with atomic_path(job.outputs["category"]) as folder:
        images = write_category(
            folder,
            job.key["category"],
            parameters["seed"],
            parameters["size"],
            parameters["train_good"],
            parameters["test_good"],
            parameters["per_defect"],
        )
    return {"images": images}


if __name__ == "__main__":
    run("demo_data", __doc__, body)
