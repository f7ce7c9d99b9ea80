"""Where languages are identified: `classify/language.py`."""

from data_pipeline.classify.language import UNKNOWN, identify

__all__ = ["UNKNOWN", "identify"]
