"""Programs that break Weir on purpose, and the fake engine that they and the tests run in place of vLLM."""
