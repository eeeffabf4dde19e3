"""Tasks and the verifiers that score answers to them."""
