"""Checkpoints of transformers: equal logits and losses for every architecture, and refusals that name what is wrong.

The files in data/pretrained were made by transformers (make_pretrained_references.py), so most tests need no torch.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_pretrained_references import CASES, SHARDED, make
from pretrained_material import PYTHIA, parameters
from safetensors.numpy import load_file, save_file

from tsl_jax.models.build import Params, abstract, hidden, unembedding
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.pretrained import checkpoint_files, description, weights
from tsl_jax.pretrained.export import export_model
from tsl_jax.training.objective import token_losses

DATA = Path(__file__).parent / "data" / "pretrained"
LOGITS, LOSSES = 1e-4, 1e-5
QUICK = {"xla_backend_optimization_level": 0}
reason = "transformers and torch are not installed; the kept files stand for them"
needs_transformers = pytest.mark.skipif(not (find_spec("transformers") and find_spec("torch")), reason=reason)


def read(folder: Path) -> tuple[ModelConfig, Params]:
    values = checkpoint_files.read_json(folder / "config.json")
    config = description.model_config(values)
    return config, weights.read_params(folder, description.architecture_of(values), config)


def computed(config: ModelConfig, params: Params, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and losses."""
    graphdef, _ = abstract(config)

    def forward(params: Params) -> tuple[jax.Array, jax.Array]:
        h_BxTxD, w_VxD = hidden(graphdef, params, tokens[:, :-1]), unembedding(params)
        return jnp.einsum("btd,vd->btv", h_BxTxD, w_VxD), token_losses(h_BxTxD, w_VxD, jnp.asarray(tokens[:, 1:]))

    logits, losses = jax.jit(forward, compiler_options=QUICK)(params)
    return np.asarray(logits), np.asarray(losses)


def compare(folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    logits, losses = computed(*read(folder), expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=LOGITS)
    np.testing.assert_allclose(losses, expected["losses"], rtol=0, atol=LOSSES)
    assert np.abs(expected["logits"]).max() > 3, "weights large enough that what is left out would show"


@pytest.mark.parametrize("name", CASES)
def test_logits_and_losses_equal_those_of_transformers(name: str) -> None:
    compare(DATA / name)
    assert len(list((DATA / name).glob("*.safetensors"))) == (4 if name == SHARDED else 1)


@needs_transformers
@pytest.mark.parametrize("name", CASES)
def test_what_transformers_saves_now_is_read_too(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(name, tmp_path, seed=1)
    compare(tmp_path)


EXPORTED = {
    "llama": ModelConfig(architecture="llama"),
    "llama, tied, scaled": ModelConfig(architecture="llama", rope_scaling=(8.0, 1.0, 4.0, 16.0), n_kv_heads=2),
    "llama, biases": ModelConfig(architecture="llama", attention_bias="all", tied=False, rope_scaling=(2.0,)),
    "gpt_neox": ModelConfig(architecture="gpt_neox"),
    "gpt2": ModelConfig(architecture="gpt_neox", positions="learned", parallel=False),
    "pythia": PYTHIA,
    "mixtral": ModelConfig(architecture="moe", n_experts=4, d_ff=16),
    "qwen2": ModelConfig(architecture="llama", attention_bias="qkv", rope_base=1e6),
    "qwen3": ModelConfig(architecture="llama", qk_norm="head", d_head=6),
    "olmo2": ModelConfig(architecture="llama", qk_norm="all", norm_after=True, tied=False),
}
EXPORTED = {
    name: config if config is PYTHIA else resolve(replace(config, preset="tiny", n_heads=4, vocabulary=50, context=40))
    for name, config in EXPORTED.items()
}


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_model_is_read_back_to_the_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "mixtral":
        monkeypatch.setattr(weights, "SHARD_BYTES", 4000)
    config = EXPORTED[name]
    params = parameters(config, 0)
    export_model(params, config, tmp_path / "out")
    again, read_params = read(tmp_path / "out")
    assert description._function(again) == description._function(config)
    jax.tree.map(np.testing.assert_array_equal, read_params, params)
    if name == "mixtral":
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3


@needs_transformers
@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_model_is_the_same_in_transformers(name: str, tmp_path: Path) -> None:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    config = EXPORTED[name]
    params, x = parameters(config, 0), np.random.default_rng(0).integers(0, 50, (2, 25)).astype(np.int32)
    export_model(params, config, tmp_path / "out")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
        )
        logits = model.eval()(torch.from_numpy(x[:, :-1]).long()).logits.numpy()
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    np.testing.assert_allclose(computed(config, params, x)[0], logits, rtol=0, atol=LOGITS)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(architecture="lstm"),
        ModelConfig(architecture="universal"),
        ModelConfig(architecture="gpt_neox", n_heads=4, n_kv_heads=2),
        ModelConfig(architecture="llama", attention_bias="qkv", qk_norm="head"),
    ],
)
def test_a_model_that_transformers_does_not_have_is_not_exported(config: ModelConfig, tmp_path: Path) -> None:
    config = resolve(replace(config, preset="tiny", vocabulary=50, context=40))
    with pytest.raises(ValueError, match="transformers has no architecture like this"):
        export_model({}, config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------- spellings and refusals


def copied(name: str, folder: Path, **changes: Any) -> Path:
    """A kept checkpoint with other entries in config.json; None takes one out."""
    shutil.copytree(DATA / name, folder)
    values = {**json.loads((folder / "config.json").read_text()), **changes}
    values = {name: value for name, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def with_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    """The same with other tensors in its one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_entries_are_read_in_the_older_spelling(tmp_path: Path) -> None:
    old = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    old["original_max_position_embeddings"] = 16
    llama3 = copied("llama3", tmp_path / "a", rope_parameters=None, rope_theta=500.0, rope_scaling=old)
    pythia = copied("pythia", tmp_path / "b", rope_parameters=None, rotary_pct=0.5, rotary_emb_base=10000)
    for name, folder in (("llama3", llama3), ("pythia", pythia)):
        assert read(folder)[0] == read(DATA / name)[0]
    oldest = copied(
        "llama2", tmp_path / "c", rope_parameters=None, num_key_value_heads=None, attention_bias=None, mlp_bias=None
    )
    assert read(oldest)[0] == replace(read(DATA / "llama2")[0])


def test_tensors_without_prefix_and_masks_are_read(tmp_path: Path) -> None:
    """As the first GPT-2 on the hub has them."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), bool))
        tensors["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    compare(with_tensors(copied("gpt2", tmp_path / "a"), change))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    folder = copied("qwen2", tmp_path / "a")
    with_tensors(folder, lambda t: t.update({n: np.asarray(v).astype(jnp.bfloat16) for n, v in t.items()}))
    params, exact = read(folder)[1], read(DATA / "qwen2")[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), params, exact)


def test_a_sliding_window_cuts_the_context() -> None:
    values = checkpoint_files.read_json(DATA / "mistral" / "config.json")
    assert description.model_config(values).context == 48
    assert description.model_config({**values, "sliding_window": None}).context == 64
    qwen = checkpoint_files.read_json(DATA / "qwen2" / "config.json")
    assert description.model_config({**qwen, "sliding_window": 8}).context == 64
    slides = {"sliding_window": 8, "use_sliding_window": True, "layer_types": None}
    assert description.model_config({**qwen, **slides}).context == 8


ENTRIES = {
    "another architecture": (
        "llama2",
        {"model_type": "gemma2"},
        "must be one of llama.*found 'gemma2'; .*tsl.evaluate",
    ),
    "own code": ("llama2", {"auto_map": {"AutoModel": "x.Y"}}, "code of its own, which is not run"),
    "quantised": ("llama2", {"quantization_config": {"bits": 4}}, "quantised weights"),
    "activation": ("llama2", {"hidden_act": "relu"}, "hidden_act 'relu' of config.json is not implemented; it may be"),
    "odd kind": ("llama2", {"hidden_act": ["silu"]}, "hidden_act"),
    "biases of the mlp": ("llama2", {"mlp_bias": True}, "mlp_bias True"),
    "scaling": (
        "llama2",
        {"rope_scaling": {"rope_type": "yarn", "factor": 2}},
        "linear .factor. or llama3 .*found .*yarn",
    ),
    "share of a head": ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not implemented"),
    "odd share": ("pythia", {"rope_parameters": None, "rotary_pct": 0.25}, "even number of dimensions, 0.25 of 4 is 1"),
    "no biases": ("pythia", {"attention_bias": False}, "attention_bias False"),
    "attention scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    "unknown entry": (
        "llama2",
        {"logit_softcap": 30.0},
        r"entry logit_softcap \(30.0\) of config.json is not known; .*--ignore",
    ),
    "no size": ("llama2", {"num_attention_heads": None}, "lacks a size"),
    "a size of text": ("llama2", {"hidden_size": "many"}, "lacks a size, or one is no number"),
}


@pytest.mark.wrong_types
@pytest.mark.parametrize("case", ENTRIES)
def test_an_entry_that_is_not_implemented_is_refused_by_name(case: str) -> None:
    name, changes, message = ENTRIES[case]
    values = {**checkpoint_files.read_json(DATA / name / "config.json"), **changes}
    with pytest.raises(ValueError, match=message):
        description.model_config(values)


def test_an_unknown_entry_can_be_ignored_and_one_that_is_off_changes_nothing() -> None:
    values = checkpoint_files.read_json(DATA / "llama2" / "config.json")
    more = {**values, "logit_softcap": 30.0, "use_mrope": False, "unsloth_version": None}
    assert description.model_config(more, ignore=("logit_softcap",)) == description.model_config(values)


def rename(old: str, new: str) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


TENSORS = {
    "missing": (
        lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
        "lacks model.layers.1.mlp.up_proj.weight of a Qwen3",
    ),
    "unknown": (lambda t: t.update(extra=t["model.norm.weight"] + 1), "does not know: extra"),
    "shape": (
        lambda t: t.update({"model.norm.weight": np.ones(5, np.float32)}),
        r"norm.weight make \(5,\), .* \(16,\)",
    ),
    "renamed": (rename("lm_head.weight", "head.weight"), "lacks lm_head.weight"),
    "integers": (lambda t: t.update({"lm_head.weight": np.ones((64, 16), np.int8)}), "type I8: quantised"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_named(case: str, tmp_path: Path) -> None:
    change, message = TENSORS[case]
    with pytest.raises(ValueError, match=message):
        read(with_tensors(copied("qwen3", tmp_path / "a"), change))


def test_a_head_that_differs_from_the_embedding_it_is_said_to_be_is_an_error(tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    with pytest.raises(ValueError, match=r"lm_head.weight of .* differs from the embedding"):
        read(with_tensors(copied("qwen2", tmp_path / "a"), change))


def test_files_that_are_no_checkpoint_get_a_sentence(tmp_path: Path) -> None:
    folder = copied("qwen3", tmp_path / "a")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged .*; download it again"):
        read(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"has no .safetensors"):
        read(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"has pytorch_model.bin, a pickle, which could run code; give safetensors"):
        read(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../b.safetensors"}}')
    with pytest.raises(ValueError, match="names no files of its folder"):
        read(folder)
    (folder / "model.safetensors.index.json").unlink()
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match=r"2 \.safetensors files and no"):
        read(folder)
    sharded = copied(SHARDED, tmp_path / "b")
    (sharded / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00004\.safetensors, which its index names"):
        read(sharded)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds list, not a mapping"):
        read(folder)
