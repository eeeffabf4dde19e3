"""TRL's GRPOTrainer on the work of a job; runs in TRL's environment, started by `sides.peer_launch`.

The same start weights, prompts as token ids, scores, optimizer and learning rate as Weir's. Answers come from
transformers' generate, the trainer's fastest way on CPUs: its vLLM server refuses to run there, and continuous batching
takes many times as long. TRL divides rewards by the sample deviation of a group, Weir by the population's: that is left
as it is.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.bench.end_to_end.peer_common import Events, Job, Problems, cut, learning_rate_factor, read_job, summary

#: held-out problems that are answered at once
_EVALUATION_ROWS = 256


def main() -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    job = read_job()
    events = Events(job["events"])
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token_id = job["pad_id"]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)

    def decode(answer: Sequence[int]) -> str:
        return str(tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    train = Problems(job, "train", decode)
    heldout = Problems(job, "heldout", decode) if job["evaluate_every"] else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(job, model, tokenizer, train, heldout, events, folder)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    events.write("ended")


def _trainer(
    job: Job, model: Any, tokenizer: Any, train: Problems, heldout: Problems | None, events: Events, folder: str
) -> Any:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    answers = job["groups_per_step"] * job["group_size"]
    settings = job["optimizer"]
    arguments = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        fp16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=job["rows"],
        gradient_accumulation_steps=answers // job["rows"],
        num_generations=job["group_size"],
        num_iterations=1,
        max_completion_length=job["max_tokens"],
        temperature=job["temperature"],
        top_p=1.0,
        top_k=0,
        generation_kwargs={"eos_token_id": job["eos_ids"]},
        beta=job["kl"],
        epsilon=job["clip"],
        loss_type="grpo",
        scale_rewards="group",
        use_bias_correction_kl=False,
        max_grad_norm=settings["max_grad_norm"],
        disable_dropout=True,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        max_steps=len(train) // job["groups_per_step"],
        seed=job["seed"],
        dataloader_pin_memory=False,
    )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )
    factor = learning_rate_factor(settings["warmup_steps"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    last: dict[str, Any] = {}

    def reward(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        scores = [train.score(i, answer) for i, answer in zip(number, completion_ids, strict=True)]
        tokens = sum(len(answer) for answer in completion_ids)
        last.update(reward=sum(scores) / len(scores), num_tokens=tokens)
        return scores

    trainer: Any = _with_our_prompts(GRPOTrainer, train)(
        model=model,
        reward_funcs=reward,
        args=arguments,
        # The text of a prompt is its number: what it is encoded as is given.
        train_dataset=Dataset.from_list([{"prompt": str(i), "number": i} for i in range(len(train))]),
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
        callbacks=[_progress(job, heldout, events, last)],
    )
    trainer.eos_token_ids = job["eos_ids"]
    first = _FirstSteps(trainer, job["first_batches"], events)
    trainer._compute_loss = first.compute_loss
    trainer.accelerator.clip_grad_norm_ = first.clip
    return trainer


def _with_our_prompts(base: Any, train: Problems) -> Any:
    class Trainer(base):
        """The trainer, given the prompts' token ids."""

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [train.prompts[int(text)] for text in prompts], None, {}

    return Trainer


class _FirstSteps:
    """Keeps batch, loss and gradient norm of the first steps, which Weir's learner then computes too.

    Args:
      paths: where the batch of each goes.
    """

    def __init__(self, trainer: Any, paths: list[str], events: Events) -> None:
        self._compute, self._clip = trainer._compute_loss, trainer.accelerator.clip_grad_norm_
        self._trainer, self._paths, self._events = trainer, list(paths), events
        self._parts: list[dict[str, np.ndarray]] = []
        self._loss = 0.0

    def compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = self._compute(model, inputs)
        if self._paths:
            names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
            self._parts.append({name: inputs[name].numpy() for name in names})
            self._loss += float(loss.detach())
        return loss

    def clip(self, parameters: Any, max_norm: float, *rest: Any) -> Any:
        norm = self._clip(parameters, max_norm, *rest)
        if self._parts:
            arrays = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
            np.savez(self._paths.pop(0), **arrays)
            self._events.write("first_step", loss=self._loss, grad_norm=float(norm))
            self._parts, self._loss = [], 0.0
        return norm


def _progress(job: Job, heldout: Problems | None, events: Events, last: dict[str, Any]) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """Writes every step, and evaluates between steps where that is due."""

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if heldout is not None:
                _evaluate(job, model, heldout, events, step=0)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            events.write("step", step=state.global_step, **last)
            if heldout is not None and state.global_step % job["evaluate_every"] == 0:
                _evaluate(job, model, heldout, events, step=state.global_step)

    return Progress()


def _evaluate(job: Job, model: Any, heldout: Problems, events: Events, *, step: int) -> None:
    """Answers all held-out problems, greedily where the job says so, and writes their scores."""
    import torch

    started = time.time()
    model.eval()
    scores: list[float] = []
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature := job["evaluation_temperature"]:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    for first in range(0, len(heldout), _EVALUATION_ROWS):
        prompts = heldout.prompts[first : first + _EVALUATION_ROWS]
        width = max(map(len, prompts))
        ids = torch.tensor([[job["pad_id"]] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=job["evaluation_tokens"],
                eos_token_id=job["eos_ids"],
                pad_token_id=job["pad_id"],
                **sampling,
            )
        answers = [cut(row, job["eos_ids"]) for row in out[:, width:].tolist()]
        scores += [heldout.score(first + i, answer) for i, answer in enumerate(answers)]
    model.train()
    figures = summary(scores)
    events.write("heldout", step=step, paused_s=time.time() - started, num_problems=len(scores), **figures)


if __name__ == "__main__":
    main()
