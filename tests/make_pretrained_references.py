"""Makes tests/data/pretrained: tiny checkpoints saved by transformers, with its logits and losses of two sequences.

    pip install torch transformers safetensors
    python tests/make_pretrained_references.py [FOLDER]

Weights are random and large, norms and biases away from one and zero, so that nothing that is left out goes unseen.
float32, eager attention, CPU; expected.npz has tokens (2, 33), the logits of the first 32 (2, 32, V), the losses of the
next tokens (2, 32), and the versions. The tests read these files without torch; where transformers is installed they
make them anew and compare.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "eos_token_id": 0}
GROUPED = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 64}
NEOX = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# name: (class of the configuration, its entries)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("LlamaConfig", {**GROUPED, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama3": ("LlamaConfig", {**GROUPED, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-bias": (
        "LlamaConfig",
        {**GROUPED, "attention_bias": True, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "mistral": ("MistralConfig", {**GROUPED, "head_dim": 6, "sliding_window": 48}),
    "qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "pythia": ("GPTNeoXConfig", {**NEOX, "rotary_pct": 0.5}),
    "gpt-neox": (
        "GPTNeoXConfig",
        {**NEOX, "use_parallel_residual": False, "hidden_act": "gelu_new", "rotary_pct": 1.0},
    ),
    "mixtral": ("MixtralConfig", {**GROUPED, "intermediate_size": 12, "num_local_experts": 4}),
    "gpt2": ("GPT2Config", {**SIZES, "n_positions": 64}),
    "olmo2": ("Olmo2Config", {**GROUPED, "rms_norm_eps": 1e-6}),
}
SHARDED = "llama2"  # is saved in several files


def make(name: str, folder: Path, seed: int = 0) -> None:
    """One checkpoint with what transformers computes from it."""
    import torch
    import transformers

    kind, entries = CASES[name]
    # GPT-2's entries have names of their own, which transformers maps
    config = getattr(transformers, kind)(**entries, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * (0.3 if parameter.ndim > 1 else 0.2) + (0 if parameter.ndim > 1 else parameter))
        tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, 64, (2, 33)))
        logits = model(tokens[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    model.save_pretrained(folder, **({"max_shard_size": "8KB"} if name == SHARDED else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    arrays = {"tokens": tokens.numpy().astype(np.int32), "logits": logits.numpy(), "losses": losses.numpy()}
    np.savez_compressed(folder / "expected.npz", versions=np.array(versions), **arrays)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data" / "pretrained"
    for name in CASES:
        (target / name).mkdir(parents=True, exist_ok=True)
        make(name, target / name)
