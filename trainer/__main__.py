"""`python -m trainer train|evaluate|export [overrides]`: the worker side of the model jobs.

Under torchrun, or `trainer.elastic`, every process runs it.
"""

from __future__ import annotations

import sys

from conf.compose import compose
from conf.exits import ERRORS


def main(kind: str, overrides: list[str]) -> int:
    """Run the job in this process; returns its exit code."""
    try:
        job = compose(kind, overrides)
        if kind == "train":  # each imports what only it needs
            from trainer.train import train

            return train(job)
        if kind == "evaluate":
            from trainer.evaluate.job import evaluate

            return evaluate(job)
        from trainer.export.job import export

        return export(job)
    except ERRORS as error:
        print(f"gemcutter {kind}: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
