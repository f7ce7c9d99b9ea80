"""`gemcutter sync`: send to W&B what it lacks of a run."""

from __future__ import annotations

import sys

from conf.exits import DATA, DONE
from trainer.arguments import Arguments
from trainer.liveness.stop import StopSignal
from trainer.run_directory import existing_run, locked, read_config
from trainer.tracker.follower import Follower


def sync(arguments: list[str]) -> int:
    """The command; returns its exit code, DATA where W&B still lacks rows."""
    parser = Arguments(prog="gemcutter sync", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run id or run directory")
    path = existing_run(parser.parse_args(arguments).run)
    document = read_config(path)
    config = document["config"]
    stop = StopSignal()
    stop.listen()
    with locked(path):
        follower = Follower(path, document["run_id"], config | {"tracker": config["tracker"] | {"name": "wandb"}}, stop)
        follower.close(failed=None)
    for news in follower.news():
        print(news["said"], file=sys.stderr)
    return DONE if follower.whole else DATA
