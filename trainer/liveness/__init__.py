"""Whether the processes of a run live and get on: heartbeats, the watch over them, and requests to stop."""
