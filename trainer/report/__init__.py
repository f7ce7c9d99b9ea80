"""What a run says of itself: metrics.jsonl, the terminal, W&B."""

from trainer.report.report import Report

__all__ = ["Report"]
