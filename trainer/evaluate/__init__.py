"""Scores of a model: benchmark tasks through lm-evaluation-harness, and bits per byte of held-out documents.

Knows no runs and no checkpoints: it is handed a model in memory.
"""
