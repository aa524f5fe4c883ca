"""The LLaMA of `transformers`, of the same shape as ours: rows of train_throughput.py."""

from __future__ import annotations

from typing import Any

import timing
import torch
import torch_step
from transformers import LlamaConfig, LlamaForCausalLM


class Logits(torch.nn.Module):
    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape["vocabulary"],
                hidden_size=shape["d"],
                intermediate_size=shape["ff"],
                num_hidden_layers=shape["layers"],
                num_attention_heads=shape["heads"],
                max_position_embeddings=shape["context"],
                tie_word_embeddings=True,
                use_cache=False,
                attn_implementation="sdpa",
            )
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens).logits


if __name__ == "__main__":
    given = timing.given()
    torch_step.run(given, Logits(given))
