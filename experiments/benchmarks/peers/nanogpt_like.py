"""A decoder in PyTorch of the shape that nanoGPT publishes (github.com/karpathy/nanoGPT).

Learned positions, LayerNorm without bias, PyTorch's own causal attention, a GELU feed-forward of 4 d, the embedding
tied. Written for train_throughput.py; no line is nanoGPT's.
"""

from __future__ import annotations

from typing import Any

import timing
import torch
import torch_step
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.first_norm(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.second_norm(x))))


class Decoder(nn.Module):
    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        d = shape["d"]
        self.embedding = nn.Embedding(shape["vocabulary"], d)
        self.places = nn.Embedding(shape["context"], d)
        self.blocks = nn.ModuleList(Block(d, shape["heads"]) for _ in range(shape["layers"]))
        self.norm = nn.LayerNorm(d, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embedding.weight)


if __name__ == "__main__":
    given = timing.given()
    torch_step.run(given, Decoder(given))
