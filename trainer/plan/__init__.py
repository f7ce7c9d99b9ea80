"""What training needs, computed from its configuration alone: memory, operations, traffic and time. Needs no torch."""
