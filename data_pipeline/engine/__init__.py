"""Work that outlives its workers: lists of tasks whose outputs are committed, on this machine's processes or on Ray."""
