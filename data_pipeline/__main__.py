"""`python -m data_pipeline curate|tokenize [overrides]`: the worker side of the data jobs."""

from __future__ import annotations

import json
import sys

from conf.compose import compose
from conf.exits import ERRORS
from conf.processes import answer, end_with


def main(kind: str, overrides: list[str]) -> int:
    """Run the job in this process; prints its summary, returns its exit code."""
    try:
        job = compose(kind, overrides)
        if kind == "curate":
            from data_pipeline.curate import curate

            summary = curate(job)
        elif job.tokenize.webdataset:
            from data_pipeline.webdataset_index import index_webdataset

            summary = index_webdataset(job)
        else:
            from data_pipeline.tokenize_text import tokenize

            summary = tokenize(job)
        print(json.dumps(summary, indent=2))
    except ERRORS as error:
        print(f"gemcutter {kind}: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    end_with()
    answer()
    sys.exit(main(sys.argv[1], sys.argv[2:]))
