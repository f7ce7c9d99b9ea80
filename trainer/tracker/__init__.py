"""Where metrics go besides metrics.jsonl: to W&B, in a process of its own that follows that file.

Knows no model, device or loop, and loads no torch: the process starts in a blink.
"""

from trainer.tracker.follower import Follower
from trainer.tracker.tracker import NoTracker, Tracker, open_tracker

__all__ = ["Follower", "NoTracker", "Tracker", "open_tracker"]
