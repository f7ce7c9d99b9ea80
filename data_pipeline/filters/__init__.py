"""Rules that judge a text by what can be counted in it. They know nothing of sources, files or other documents."""
