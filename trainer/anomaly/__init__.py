"""Numbers that go wrong: how that is seen, what is done about it, and what it leaves for people to read."""
