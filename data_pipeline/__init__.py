"""Raw text to curated text, to token shards, to batches. Never imports `trainer` or `launch`."""
