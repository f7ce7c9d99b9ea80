"""Batches to model, to checkpoints, to exports and scores. Imports `data_pipeline`; never `launch`."""
