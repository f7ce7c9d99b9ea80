"""Portable weights: a trained Gemma as other software loads it. Knows no run and no checkpoint format."""

from trainer.export.hf import export_hf

__all__ = ["export_hf"]
