"""Faults put into real runs: processes killed, signals at any time, hosts lost, storage and trackers that misbehave.

A scenario is a function of a folder to work in; `short` makes it the form that `make test` runs. It gives rows of
{figure, ours, bar, met}, and whatever else it wants to tell of a figure under other names.
"""

SEED = 20_261_126  # of every scenario
