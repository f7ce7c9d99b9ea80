"""The `gemcutter` command: a job on this machine. Never imports torch."""
