"""Harmful content: word lists, block lists of the user, toxicity scores, and the category that must not be stored.

Each says what it found; which documents go is decided by whoever asks, but for the last (`prohibited.py`).
"""
