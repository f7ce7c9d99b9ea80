"""What a training job needs, computed from its configuration alone: memory, operations, traffic, time. Needs no torch."""
