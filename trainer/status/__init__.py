"""`gemcutter status`: runs at a glance, from their files alone. Loads no torch, and disturbs no run that is at work."""
