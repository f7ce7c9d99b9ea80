"""Run by .venv-formats: jobs of the trainer one after another in one process, as its start takes longest.

usage: python jobs.py '[["export", "run=tiny", ...], ...]'
"""

from __future__ import annotations

import json
import sys

from trainer.__main__ import main

for kind, *overrides in json.loads(sys.argv[1]):
    code = main(kind, overrides)
    if code:
        sys.exit(code)
