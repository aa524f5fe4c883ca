"""Losses by position from a plain PyTorch loop: the three lines with `losses` are all that is added to it.

python docs/examples/position_losses_pytorch.py OUT.jsonl; tsl import OUT.jsonl --out surface.npz; tsl fit surface.npz
"""

import sys

import torch
from torch.nn import functional

from tsl_jax.importers import PositionLosses

VOCABULARY, LENGTH, BATCH, STEPS = 32, 64, 16, 60


class Model(torch.nn.Module):
    """A small recurrent language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, 32)
        self.recurrent = torch.nn.GRU(32, 64, batch_first=True)
        self.unembed = torch.nn.Linear(64, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.unembed(self.recurrent(self.embed(ids))[0])


def windows(generator: torch.Generator) -> torch.Tensor:
    """Windows that repeat a short random phrase, so that context helps."""
    phrase = torch.randint(0, VOCABULARY, (BATCH, 8), generator=generator)
    return phrase.repeat(1, LENGTH // 8 + 1)[:, : LENGTH + 1]


def token_losses(model: Model, ids: torch.Tensor) -> torch.Tensor:
    """(batch, position): the loss of each token given those before it."""
    logits = model(ids[:, :-1])
    return functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def main(path: str) -> None:
    torch.manual_seed(0)
    model, generator = Model(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = PositionLosses(path)  # 1
    for step in range(1, STEPS + 1):
        loss = token_losses(model, windows(generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                for batch in range(4):
                    losses.add(
                        token_losses(model, windows(torch.Generator().manual_seed(batch))), domain="phrases"
                    )  # 2
            losses.write(step=step, tokens=step * BATCH * LENGTH, lr=3e-3)  # 3


if __name__ == "__main__":
    main(sys.argv[1])
