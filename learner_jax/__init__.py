"""The learner: model, losses, sharded train step and checkpoints, in JAX."""
