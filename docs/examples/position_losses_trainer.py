"""Losses by position from the Trainer of transformers: a callback that measures them at each evaluation.

    trainer = Trainer(model, args, ..., callbacks=[PositionLossCallback("runs/mine/losses.jsonl")])

It evaluates the model on the Trainer's own `eval_dataset` once more, without dropout; `tsl import
runs/mine/losses.jsonl` makes a surface of the file.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import TrainerCallback

from tsl_jax.importers import PositionLosses


class PositionLossCallback(TrainerCallback):
    """Appends the losses of every position to a file, after each evaluation.

    Args:
        path: the file. tokens_per_step: of all devices; without, the Trainer's own count is taken where it keeps one
            (`include_num_input_tokens_seen`), and steps are the clock where it does not.
        domain: what the evaluation text is of; batches: how many of its batches are measured.
    """

    def __init__(self, path: str, tokens_per_step: int | None = None, domain: str = "eval", batches: int = 1000):
        self.losses = PositionLosses(path)
        self.tokens_per_step, self.domain, self.batches = tokens_per_step, domain, batches

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, loader, schedule = kwargs["model"], kwargs["eval_dataloader"], kwargs.get("lr_scheduler")
        if not state.is_world_process_zero:
            return
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for _, batch in zip(range(self.batches), loader, strict=False):
                batch = {name: value.to(model.device) for name, value in batch.items()}
                labels = batch.pop("labels")[:, 1:]
                logits = model(**batch).logits[:, :-1].float()
                loss = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
                self.losses.add(loss, domain=self.domain, mask=labels != -100)
        model.train(was_training)
        tokens = state.num_input_tokens_seen or None
        if self.tokens_per_step is not None:
            tokens = self.tokens_per_step * state.global_step
        lr = schedule.get_last_lr()[0] if schedule is not None else None
        self.losses.write(step=state.global_step, tokens=tokens, lr=lr)
