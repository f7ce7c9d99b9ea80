"""Optimizers, the schedule of their rates, and the average of the weights."""
