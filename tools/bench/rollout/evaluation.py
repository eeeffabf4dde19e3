"""How much of vLLM's own speed an evaluation gets: tokens per second through it, beside vLLM's benchmark client.

python -m tools.bench evaluate [--requests 512] [--tokens 64] [--concurrency 64] [--rounds 5] [--json PATH]

One real vLLM server with a small model that is made for it. In every round, in turn, with the same prompts, tokens per
answer (no end token ends any) and requests at once:

  weir    an evaluation: prompts, requests, decoding, scoring, and every answer written as a line; from its start until
          the last answer is scored. Metrics and intervals are not in it
  vllm    vllm.benchmarks.serve against /v1/completions, as `vllm bench serve` runs it: streamed, without log-probs
  bare    the evaluation's very requests, sent and read and looked at no further

The ratios are of throughputs within a round. Not covered: GPUs, long answers, several samples of a prompt, endpoints.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from serving_bridge.vllm import VllmClient
from tools.assembly import collect_garbage_less_often
from tools.bench import BenchmarkError
from tools.bench.rollout.rollout import SIDES, Additions, Server, Work, measure, table, verdict
from tools.bench.timing import bench_parser, console, positive, sides_progress, this_hardware, write_json
from tools.evaluation import (
    AnswerLog,
    FolderPrompts,
    Identity,
    OpenSuite,
    ReplicaModel,
    SuiteProblem,
    examine,
    parse_suite,
)

#: throughput relative to vLLM's client
AIM = 0.95


async def evaluated(server: Server, number: int) -> float:
    """Seconds until every answer of the round is written and scored."""
    suite = _suite(server.work, number)
    prompts = FolderPrompts(
        server.encoder.tokenizer, max_model_len=server.encoder.max_prompt_tokens + server.work.tokens
    )

    async def client() -> VllmClient:
        return server.replica.client

    log = AnswerLog(server.folder / f"answers-{number}.jsonl")
    model = ReplicaModel(Identity("folder", "bench", "bench"), prompts, client)
    try:
        began = time.perf_counter()
        await examine(model, suite, log, concurrency=server.work.concurrency)
        seconds = time.perf_counter() - began
    finally:
        log.close()
    return seconds


def _suite(work: Work, number: int) -> OpenSuite:
    task = Additions(number * work.groups)
    problems = [SuiteProblem(str(i), "", task.problem("heldout", i)) for i in range(work.groups)]
    sampling = {"temperature": 1.0, "max_tokens": work.tokens, "seed": -1}
    tree = {"name": "bench", "source": "jsonl", "path": "none", "score": {"reward": "exact"}, "sampling": sampling}
    settings = parse_suite(tree, folder=Path(), origin="bench").settings
    return OpenSuite(settings, problems, task, None, "bench", ())


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table and the aim, and writes the figures as JSON where asked to."""
    parser = bench_parser("evaluate", __doc__)
    parser.add_argument("--requests", type=positive, default=512, help="prompts of a round (default 512)")
    parser.add_argument("--tokens", type=positive, default=64, help="of each answer (default 64)")
    parser.add_argument("--concurrency", type=positive, default=64, help="requests at once (default 64)")
    parser.add_argument("--rounds", type=positive, default=5, help="default 5")
    given = parser.parse_args(argv)
    try:
        import vllm.benchmarks.serve  # noqa: F401
    except ImportError as error:
        raise BenchmarkError(f"the peer needs vLLM ({error}): run tools/install.sh demo") from None
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    collect_garbage_less_often()
    work = Work(given.requests, 1, given.tokens, given.concurrency)
    with sides_progress((given.rounds + 1) * len(SIDES)) as done, tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(work, given.rounds, Path(folder), done, weir=evaluated))
    out.print(table(result))
    out.print(verdict(result, aim=AIM), highlight=False)
    if given.json is not None:
        write_json(given.json, "evaluate", hardware, asdict(work) | {"rounds": given.rounds}, asdict(result))
        out.print(f"wrote {given.json}", highlight=False)
