"""Converts between Orbax checkpoints and Hugging Face folders, in pieces: no model is ever whole in memory.

python -m tools.convert to-hf --checkpoint runs/demo/checkpoints --out DIR [--model DIR] [--dtype bfloat16] [--verify]
python -m tools.convert from-hf --model DIR --out DIR [--verify]
python -m tools.convert verify --checkpoint DIR --hf DIR
python -m tools.convert from-gguf --file FILE --out DIR [--dtype float32]

from-gguf writes a Hugging Face folder, which model.path can name; its weights keep the error of their quantization.
A checkpoint that is not whole is refused; its files' hashes are checked unless --no-hash-check is given. A conversion
that was stopped goes on when the same command is given again.

Checkpoints, models and results may be in object storage (s3://, gs://, az://). What is read there is fetched first, to
a temporary folder (TMPDIR). A run's store.checkpoints stands for its newest copy; with /40 after it, for step 40's.
from-gguf works on this machine's disks alone.
Exit status 1 if something is missing, damaged or different; stderr says what.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from learner_jax.conversion import ConversionError, Verification, Watch, from_gguf, from_hf, to_hf, verify
from learner_jax.runtime import keep_freed_chunks
from learner_jax.settings import OptimizerSettings
from serving_bridge.storage import FsspecObjects, is_url
from tools.assembly import checkpoint_here, clear_errors, model_here
from tools.command_line import command_parser
from tools.reporting import SafeConsole

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(text: str) -> int:
    """A number of bytes such as 5GB or 500MB, in powers of ten as transformers counts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if match is None or not (found := int(float(match[1]) * _UNITS[match[2]])):
        raise argparse.ArgumentTypeError(f"expected a size such as 5GB or 500MB, got {text!r}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("convert", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    forward = commands.add_parser("to-hf", help="Orbax checkpoint -> safetensors folder")
    forward.add_argument("--checkpoint", required=True, help="one checkpoint, or a folder: its newest")
    forward.add_argument("--model", help="folder to take config.json and tokenizer from, if the checkpoint has none")
    forward.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    forward.add_argument("--max-shard-size", type=size, default=size("5GB"), metavar="SIZE", help="default 5GB")
    backward = commands.add_parser("from-hf", help="safetensors folder -> Orbax checkpoint at step 0")
    backward.add_argument("--model", required=True, help="Hugging Face model folder")
    backward.add_argument(
        "--moments",
        choices=("float32", "bfloat16", "factored"),
        default="float32",
        help="learner.optimizer.moments of the run that will start from it (default float32)",
    )
    for command in (forward, backward):
        command.add_argument("--out", required=True, help="folder that does not exist yet")
        command.add_argument("--verify", action="store_true", help="compare the result with its source")
    check = commands.add_parser("verify", help="compare a safetensors folder with a checkpoint")
    check.add_argument("--checkpoint", required=True, help="one checkpoint, or a folder: its newest")
    check.add_argument("--hf", required=True, help="Hugging Face model folder")
    for command in (forward, check):
        command.add_argument(
            "--no-hash-check",
            action="store_true",
            help="do not compare the checkpoint's files with their hashes first, which reads all of them",
        )
    quantized = commands.add_parser("from-gguf", help="GGUF file -> safetensors folder; needs weir[gguf]")
    quantized.add_argument("--file", required=True, help="the .gguf file, or a folder that holds one")
    quantized.add_argument("--out", required=True, help="folder that does not exist yet")
    quantized.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default bfloat16")
    for command in (forward, backward, check):
        command.add_argument(
            "--family",
            default="",
            metavar="NAME",
            help='model.family of the run: an entry point or "package.module:NAME"; empty: one that Weir has',
        )
        command.add_argument(
            "--no-logprobs", action="store_true", help="with verify: compare bytes alone, in little memory"
        )
    return parser


@contextmanager
def _watch(what: str) -> Iterator[Watch]:
    """A bar on a terminal; elsewhere only sentences, on stderr."""
    console = SafeConsole(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn(what), *columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(what, total=None)
        yield Watch(
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            say=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
        )


def _verify(checkpoint: str, hf: str, *, logprobs: bool, check_hashes: bool = True, family: str = "") -> str:
    """What a comparison found, in a sentence; raises if anything differs."""
    with (
        _watch("verifying") as watch,
        checkpoint_here(checkpoint, progress=watch.progress) as source,
        model_here(hf, weights=True, progress=watch.progress) as model,
    ):
        found: Verification = verify(
            source.folder, model.folder, logprobs=logprobs, check_hashes=check_hashes, family=family, watch=watch
        )
    if found.problems:
        shown = "\n  ".join(found.problems[:20])
        more = f"\n  and {len(found.problems) - 20} more" if len(found.problems) > 20 else ""
        raise ConversionError(f"{hf} is not what {checkpoint} holds:\n  {shown}{more}")
    text = f"verified: {found.num_tensors} tensors of {hf} are those of {checkpoint}"
    if found.logprob_difference is None:
        return text
    return f"{text}; log-probs of {found.judge} differ by {found.logprob_difference:.1e} at most"


def _to_hf(arguments: argparse.Namespace) -> None:
    with (
        _watch("converting") as watch,
        checkpoint_here(arguments.checkpoint, progress=watch.progress) as source,
        model_here(arguments.model or "", weights=False) as model,
    ):
        to_hf(
            source.folder,
            identity=source.identity(),
            model_dir=model.folder or None,
            out=_target(arguments.out),
            dtype=arguments.dtype,
            max_shard_bytes=arguments.max_shard_size,
            check_hashes=not arguments.no_hash_check,
            family=arguments.family,
            watch=watch,
        )


def _from_hf(arguments: argparse.Namespace) -> None:
    with _watch("converting") as watch, model_here(arguments.model, weights=True, progress=watch.progress) as model:
        from_hf(
            model.folder,
            identity=model.identity(),
            out=_target(arguments.out),
            optimizer=OptimizerSettings(moments=arguments.moments),
            family=arguments.family,
            watch=watch,
        )


def _target(out: str) -> str | FsspecObjects:
    return FsspecObjects(out) if is_url(out) else out


def _from_gguf(arguments: argparse.Namespace) -> None:
    for place in (arguments.file, arguments.out):
        if is_url(place):
            raise ConversionError(f"from-gguf works on this machine's disks, got {place}: expected a path")
    with _watch("reading"):
        number = from_gguf(arguments.file, out=arguments.out, dtype=arguments.dtype)
    print(f"wrote {arguments.out}: {number} tensors in {arguments.dtype}")


def _convert(arguments: argparse.Namespace) -> None:
    is_forward = arguments.command == "to-hf"
    try:
        (_to_hf if is_forward else _from_hf)(arguments)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {arguments.out}", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"wrote {arguments.out}")
    if arguments.verify:
        checkpoint, hf = (arguments.checkpoint, arguments.out) if is_forward else (arguments.out, arguments.model)
        hashes = not (is_forward and arguments.no_hash_check)
        logprobs = not arguments.no_logprobs
        print(_verify(checkpoint, hf, logprobs=logprobs, check_hashes=hashes, family=arguments.family))


def main() -> None:
    arguments = _parser().parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of a file that a run's checkpoints don't need
    keep_freed_chunks()
    with clear_errors():
        if arguments.command == "from-gguf":
            _from_gguf(arguments)
        elif arguments.command == "verify":
            logprobs, hashes = not arguments.no_logprobs, not arguments.no_hash_check
            family = arguments.family
            print(_verify(arguments.checkpoint, arguments.hf, logprobs=logprobs, check_hashes=hashes, family=family))
        else:
            _convert(arguments)


if __name__ == "__main__":
    main()
