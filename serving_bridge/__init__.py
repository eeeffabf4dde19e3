"""Everything between the learner and the vLLM fleet: queue, rollouts, weight store, replicas, rounds."""
