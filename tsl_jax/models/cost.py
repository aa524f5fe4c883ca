"""What a model costs: parameters and training FLOPs, embeddings apart. Standard library only.

Every function takes a resolved configuration (`config.resolve`).

With d = d_model, h = head dimension, H query heads, K key/value heads, f = d_ff, L layers, E experts of which a token
uses A, V tokens and T positions, the matrices of one layer hold M parameters, its norms and biases m:

    llama        M = a + 3 d f           m = 2 d                     a = d h (H + 2 K) + H h d
    gpt_neox     M = a + 2 d f           m = 6 d + f + h (H + 2 K)
    moe          M = a + d E + 3 d f E   m = 2 d                     a token meets a + d E + 3 d f A
    lstm         M = 8 d^2               m = 4 d
    universal    M = a + 3 d f           m = 2 d                     stored once, met L times

    n_params    = L (M + m) + d         gpt_neox: + 2 d;  lstm: + d^2, its projection;  universal: M + m + L d + d
    embeddings  = V d  (tied)  or  2 V d  (untied);  + C d where the C positions of the context are learned
    FLOPs/token = 6 (L M_met + V d) + 6 L H h (T + 1)         lstm: 6 (L M + d^2 + V d)

In llama, moe and universal m has h (H + 2 K) more for `attention_bias` "qkv", d more still for "all"; and 2 h more for
`qk_norm` "head", h (H + K) for "all". The last term of the FLOPs is causal attention: two products of 2 H h FLOPs per
visible key, (T + 1) / 2 keys on average, times three for forward and backward. Kaplan et al. (arXiv 2001.08361, section
2.1) count 6 N; here N is then what a token meets.
"""

from __future__ import annotations

from tsl_jax.models.config import ModelConfig, head_dim


def n_params(config: ModelConfig) -> int:
    """Parameters without embeddings, norms and biases included (N of the scaling laws); shared ones count once."""
    stored = 1 if config.architecture == "universal" else config.n_layers
    return stored * (_layer_matrices(config, config.n_experts) + _layer_vectors(config)) + _outside_layers(config)


def n_params_active(config: ModelConfig) -> int:
    """Parameters that a token meets, as often as it meets them: unused experts out, a shared block once a layer."""
    met = _layer_matrices(config, config.experts_per_token) + _layer_vectors(config)
    return config.n_layers * met + _outside_layers(config)


def n_params_embedding(config: ModelConfig) -> int:
    """Parameters of the embedding, of the unembedding where it is not tied, and of learned positions."""
    positions = config.context if config.positions == "learned" else 0
    return ((1 if config.tied else 2) * config.vocabulary + positions) * config.d_model


def flops_per_token(config: ModelConfig, context: int = 0) -> int:
    """Training FLOPs a token, forward and backward: the matrices it meets, the unembedding and causal attention."""
    matrices = config.n_layers * _layer_matrices(config, config.experts_per_token)
    if config.architecture == "lstm":
        attention, matrices = 0, matrices + config.d_model**2
    else:
        width = config.n_heads * head_dim(config)
        attention = 6 * config.n_layers * width * ((context or config.context) + 1)
    return 6 * (matrices + config.vocabulary * config.d_model) + attention


def flops_per_token_6n(config: ModelConfig) -> int:
    """The estimate 6 N of Kaplan et al., N what a token meets, for comparison with published compute."""
    return 6 * n_params_active(config)


def _layer_matrices(config: ModelConfig, experts: int) -> int:
    """Parameters in the matrices of one layer, so many experts counted."""
    d = config.d_model
    if config.architecture == "lstm":
        return 8 * d * d
    h = head_dim(config)
    attention = d * h * (config.n_heads + 2 * config.n_kv_heads) + config.n_heads * h * d
    if config.architecture == "gpt_neox":
        return attention + 2 * d * config.d_ff
    if config.architecture == "moe":
        return attention + d * config.n_experts + experts * 3 * d * config.d_ff
    return attention + 3 * d * config.d_ff


def _layer_vectors(config: ModelConfig) -> int:
    """Norms and biases of one layer."""
    d = config.d_model
    if config.architecture == "lstm":
        return 4 * d
    h = head_dim(config)
    qkv = h * (config.n_heads + 2 * config.n_kv_heads)
    if config.architecture == "gpt_neox":
        return 6 * d + config.d_ff + qkv
    bias = {"none": 0, "qkv": qkv, "all": qkv + d}[config.attention_bias]
    return 2 * d + bias + {"none": 0, "head": 2 * h, "all": qkv - h * config.n_kv_heads}[config.qk_norm]


def _outside_layers(config: ModelConfig) -> int:
    """The last norm; the projection of an LSTM; the depth embedding of a Universal Transformer."""
    d = config.d_model
    last = {"gpt_neox": 2 * d, "lstm": d * d, "universal": (config.n_layers + 1) * d}
    return last.get(config.architecture, d)
