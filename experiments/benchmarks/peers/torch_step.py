"""One training step of a PyTorch model that gives logits: AdamW, clipping, float32 or bfloat16 by autocast."""

from __future__ import annotations

from typing import Any

import timing
import torch
from torch.nn import functional


def run(shape: dict[str, Any], model: torch.nn.Module) -> None:
    """Measure the model, compiled if the variant says so; the model is called with tokens (B, T) and gives logits."""
    torch.manual_seed(0)
    torch.set_num_threads(shape["cores"])
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if "compile" in shape["variant"] else model
    low = "bfloat16" in shape["variant"]

    def advance(batch: Any) -> torch.Tensor:
        tokens = torch.from_numpy(batch).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = forward(tokens[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss.detach()

    timing.measure(shape, advance, float)
