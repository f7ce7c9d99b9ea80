"""The configuration tree of every job: YAML groups, the typed schema and its cross-field checks."""
