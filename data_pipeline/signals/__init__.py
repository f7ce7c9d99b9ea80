"""What can be counted in a document: one tokenisation of a batch, and every number that a rule may ask for.

Signals are facts about texts; which of them drop a document is decided later (`thresholds.py`).
"""

from data_pipeline.signals.columns import COLUMNS, UNSPACED, Column, measure

__all__ = ["COLUMNS", "UNSPACED", "Column", "measure"]
