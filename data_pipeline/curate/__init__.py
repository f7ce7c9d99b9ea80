"""The `curate` job: sources to documents, to what is kept and what is not, to a folder of Parquet with its data card.

job         the job: what is there already, what is to be done, what appears at the end
road        the stages in their order
stages      does a stage in the folder that keeps what was done
models      tasks before reading: index of benchmarks, classifiers, limits from a reference set
reading     the task that reads: records to documents, and all that is known of each alone
judging     the task that holds limits against what was measured
settling    the task that says which documents stay among equal and near ones
naming      the task that finds names that several documents want
writing     the task that writes the parts that are published
earlier     the task that reads text of an earlier curation
publish     the folder that appears complete, or not at all
"""

from __future__ import annotations

from typing import Any

from conf.schema import Job
from data_pipeline.document import EXTRAS, require


def curate(job: Job) -> dict[str, Any]:
    """Do the job: see `job.curate`. Raises ConfigError first where a package of the extra `curate` is missing."""
    require(*(package for package, extra in EXTRAS.items() if extra == "curate"))
    from data_pipeline.curate import job as curation

    return curation.curate(job)
