"""What a run says of itself: metrics.jsonl, the terminal, W&B."""

from trainer.report.report import Report
from trainer.report.stopwatch import Stopwatch

__all__ = ["Report", "Stopwatch"]
