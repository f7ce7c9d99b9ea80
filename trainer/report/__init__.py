"""What a run says of itself: metrics.jsonl, the terminal, W&B."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.report.stopwatch import Stopwatch

if TYPE_CHECKING:
    from trainer.report.report import Report

__all__ = ["Report", "Stopwatch"]


def __getattr__(name: str) -> Any:
    """`Report` loads torch, which whoever reads a run's ledger need not wait for."""
    if name == "Report":
        from trainer.report.report import Report

        return Report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
