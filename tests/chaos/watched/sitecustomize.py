"""Loaded by every Python process of a job that `tests.chaos.site` starts: how each one's children end is written down.

A launcher tells one exit code; what it read from the kernel of each of its processes, only it can know.
"""

import json
import os
import subprocess

if path := os.environ.get("GEMCUTTER_CHAOS_CODES"):
    reaped = subprocess.Popen._handle_exitstatus

    def written_down(self, *status):
        reaped(self, *status)
        with open(path, "a") as file:
            file.write(json.dumps({"pid": self.pid, "args": self.args, "code": self.returncode}) + "\n")

    subprocess.Popen._handle_exitstatus = written_down
