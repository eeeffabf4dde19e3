// The charts: what each shows, in which unit, and how to read it.

export const CURVES = [
  {
    id: "reward", title: "Reward", table: "steps", unit: "reward", about: "Mean reward of the sampled answers in each batch, at the training temperature.",
    series: [{ key: "reward", label: "train", hue: "blue" }],
  },
  {
    id: "heldout", title: "Held-out", table: "heldout", unit: "share passed, or mean score", about: "Greedy answers to problems that are never trained on.", low: 0, format: "percent",
    nothing: "Not measured yet: evaluation.every says how often.",
    series: [{ key: "accuracy", label: "accuracy", hue: "green", points: true }, { key: "mean_score", label: "mean score", hue: "cyan", points: true, dash: 1 }],
  },
  { id: "parts", title: "Reward by part", table: "steps", unit: "reward", about: "Mean of each part of the reward, over the answers that have it.", parts: true, nothing: "This task's reward has no parts." },
  {
    id: "kl", title: "KL to the start", table: "steps", unit: "nats per token", about: "How far the policy has moved from the frozen reference (k3).", low: 0,
    bound: { of: "kl_budget", name: "budget" }, series: [{ key: "kl", label: "KL", hue: "purple" }],
  },
  { id: "entropy", title: "Entropy", table: "steps", unit: "nats per token", about: "Mean entropy of the policy over sampled tokens.", low: 0, series: [{ key: "entropy", label: "entropy", hue: "orange" }] },
  {
    id: "policy", title: "Off-policy", table: "steps", unit: "share of tokens", about: "100% effective sample size is on-policy data; clipped tokens teach nothing further.", low: 0, high: 1, format: "percent",
    series: [{ key: "effective_sample_share", label: "effective sample size", hue: "purple" }, { key: "clip_fraction", label: "clipped", hue: "grey" }, { key: "mismatch_masked", label: "masked for mismatch", hue: "red" }],
  },
  {
    id: "mismatch", title: "Sampler and trainer", table: "steps", unit: "nats, log scale", about: "Absolute difference of vLLM's and the learner's log-probs, same tokens and weights.", log: true,
    series: [{ key: "mismatch_mean_abs_logprob", label: "mean", hue: "blue" }, { key: "mismatch_max_abs_logprob", label: "largest", hue: "grey" }],
  },
  {
    id: "staleness", title: "Staleness", table: "steps", unit: "policy versions", about: "Versions between sampling and training. A group beyond the bound is dropped.", low: 0,
    bound: { of: "max_staleness", name: "bound" }, series: [{ key: "staleness_mean", label: "mean", hue: "orange" }, { key: "staleness_max", label: "oldest token", hue: "grey", smooth: false }],
  },
  { id: "length", title: "Answer length", table: "steps", unit: "tokens", about: "Mean length of the sampled answers.", low: 0, series: [{ key: "answer_tokens_mean", label: "mean", hue: "cyan" }] },
  { id: "truncated", title: "Truncation", table: "steps", unit: "share of answers", about: "Answers that were cut at their longest length.", low: 0, format: "percent", series: [{ key: "truncated_share", label: "cut", hue: "red" }] },
  {
    id: "rate", title: "Sampling", table: "intervals", unit: "tokens per second", about: "Sampled tokens per second of all rollout workers together.", low: 0,
    series: [{ key: "tokens_per_s", label: "tokens/s", hue: "blue" }],
  },
  {
    id: "idle", title: "Idle shares", table: "steps", unit: "share of time", about: "The side that waits is not the bottleneck.", low: 0, high: 1, format: "percent",
    series: [{ key: "idle", label: "learner", hue: "blue" }, { table: "intervals", key: "idle", label: "rollouts", hue: "orange" }],
  },
  {
    id: "steptime", title: "Where a step's time goes", table: "steps", unit: "seconds per step", about: "One above the other; the slowest steps (the first one compiles) are cut off.", low: 0, stack: true, robust: true,
    series: [
      { key: "wait_s", label: "wait for groups", hue: "grey" }, { key: "prepare_s", label: "build", hue: "orange" }, { key: "transfer_s", label: "transfer", hue: "red" },
      { key: "compute_s", label: "compute", hue: "blue" }, { key: "publish_s", label: "publish", hue: "green" }, { key: "save_s", label: "save", hue: "purple" },
    ],
  },
  {
    id: "wasted", title: "Groups that teach nothing", table: "steps", unit: "groups per step", about: "All answers of one reward; too stale; or with too few verdicts.", low: 0,
    series: [{ key: "zero_variance_groups", label: "one reward", hue: "grey" }, { key: "dropped_stale", label: "too stale", hue: "red" }, { key: "unjudged_groups", label: "unjudged", hue: "purple" }],
  },
  { id: "gradient", title: "Gradient norm", table: "steps", unit: "norm before clipping", about: "Spikes tell of unstable updates.", low: 0, robust: true, series: [{ key: "grad_norm", label: "norm", hue: "red" }] },
  { id: "loss", title: "Loss", table: "steps", unit: "loss", about: "Of a policy gradient: it need not fall.", series: [{ key: "loss", label: "loss", hue: "grey" }] },
  {
    id: "device", title: "Use of the devices", table: "steps", unit: "share", about: "Model FLOP/s over the peak, and slots of the batch that hold a token.", low: 0, high: 1, format: "percent",
    series: [{ key: "mfu", label: "MFU", hue: "blue" }, { key: "real_token_share", label: "real tokens", hue: "green" }],
  },
  { id: "value", title: "Value function", table: "steps", unit: "explained variance", about: "1 is perfect, below 0 harmful.", optional: true, series: [{ key: "value_explained_variance", label: "explained", hue: "orange" }] },
  {
    id: "warm", title: "Supervised start", table: "warm_start", unit: "nats per token; share right", about: "Loss on the task's own answers, and accuracy on validation problems.", low: 0, optional: true, smooth: false, xName: "supervised step",
    series: [{ key: "loss", label: "loss", hue: "grey" }, { key: "accuracy", label: "accuracy", hue: "green" }],
  },
];

export const FLEET = [
  {
    id: "pauses", title: "Weight updates", table: "rounds", unit: "seconds", about: "How long a replica paused to take new weights, and how long it staged them before.", low: 0, format: "seconds", robust: true,
    nothing: "No weights were updated yet.", series: [{ key: "pause_s", label: "pause", hue: "red" }, { key: "stage_s", label: "staging", hue: "grey" }],
  },
  {
    id: "depth", title: "Queue", table: "queue", unit: "groups", about: "Groups that wait for the learner and that it holds, while this page is open.", low: 0,
    nothing: "Drawn while a run goes on and this page is open.", series: [{ key: "ready", label: "ready", hue: "blue", smooth: false }, { key: "leased", label: "held by the learner", hue: "green", smooth: false }],
  },
  {
    id: "open", title: "Requests", table: "intervals", unit: "per worker", about: "Groups being sampled, and requests that wait for a replica with room.", low: 0,
    series: [{ key: "running", label: "groups open", hue: "blue" }, { key: "waiting_requests", label: "waiting requests", hue: "orange" }],
  },
];
