"""`python -m trainer train|evaluate|export|import|plan [overrides]`: the worker side of the model jobs.

Under torchrun, or `trainer.elastic`, every process runs it. The plain commands take a run instead.
"""

from __future__ import annotations

import gc
import os
import sys
from pkgutil import resolve_name

from conf.exits import DONE, ERRORS, STOPPED, begin, declare
from conf.processes import answer, end_with, ignore, speak_on
from trainer.liveness.stop import StopSignal

# By name, as each imports what only it needs.
COMMANDS = {
    "explain": "trainer.explain:explain",
    "skip": "trainer.skip:skip",
    "status": "trainer.status.status:status",
    "checkpoint": "trainer.checkpoint.command:look",
    "sync": "trainer.tracker.sync:sync",
}
JOBS = {
    "evaluate": "trainer.evaluate.job:evaluate",
    "import": "trainer.export.import_job:import_weights",
    "plan": "trainer.plan.job:plan",
    "export": "trainer.export.job:export",
}


def main(kind: str, overrides: list[str], stop: StopSignal | None = None) -> int:
    """Run the job in this process; returns its exit code. `stop` listens for who asks to stop training."""
    try:
        if kind in COMMANDS:
            return int(resolve_name(COMMANDS[kind])(overrides))
        from conf.compose import compose  # takes a while, in which a signal may come

        job = compose(kind, overrides)
        if kind == "train":
            gc.disable()  # until the first step: it would walk through all that imports make, and find next to nothing
            from trainer.train import train

            return train(job, stop or StopSignal())
        return int(resolve_name(JOBS[kind])(job))
    except BrokenPipeError:  # whoever reads what `explain` prints, such as `head`, has enough
        if kind not in COMMANDS:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except ERRORS as error:
        print(f"gemcutter {kind}: {error}", file=sys.stderr)
        declare(error.code)
        return error.code
    finally:
        gc.enable()


if __name__ == "__main__":
    end_with()
    begin()
    speak_on()
    if sys.argv[1] != "train":
        answer()
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    stop = StopSignal()
    stop.listen()
    code = main(sys.argv[1], sys.argv[2:], stop)
    ignore()
    if code == STOPPED:  # which a launcher that loses its peers on other hosts would not hear of
        declare(code)
    sys.exit(code)
