"""`python -m trainer train|evaluate|export|import|plan [overrides]`: the worker side of the model jobs.

Under torchrun, or `trainer.elastic`, every process runs it. The plain commands `explain` and `skip` take a run instead.
"""

from __future__ import annotations

import gc
import os
import sys

from conf.compose import compose
from conf.exits import DONE, ERRORS, declare


def main(kind: str, overrides: list[str]) -> int:
    """Run the job in this process; returns its exit code."""
    try:
        if kind == "explain":
            from trainer.explain import explain

            return explain(overrides)
        if kind == "skip":
            from trainer.skip import skip

            return skip(overrides)
        job = compose(kind, overrides)
        if kind == "train":  # each imports what only it needs
            gc.disable()  # until the first step: it would walk through all that imports make, and find next to nothing
            from trainer.train import train

            return train(job)
        if kind == "evaluate":
            from trainer.evaluate.job import evaluate

            return evaluate(job)
        if kind == "import":
            from trainer.export.import_job import import_weights

            return import_weights(job)
        if kind == "plan":
            from trainer.plan.job import plan

            return plan(job)
        from trainer.export.job import export

        return export(job)
    except BrokenPipeError:  # whoever reads what `explain` prints, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except ERRORS as error:
        print(f"gemcutter {kind}: {error}", file=sys.stderr)
        declare(error.code)
        return error.code
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
