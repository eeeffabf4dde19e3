"""Things that go wrong on purpose: an engine and a wire that misbehave as told, and what must hold all the same."""
