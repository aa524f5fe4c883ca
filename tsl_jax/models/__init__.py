"""Flax decoders of five architectures, as a graph definition and a plain tree of parameters.

    config      ModelConfig: architecture, shape and dtypes; `resolve` fills in what it leaves out
    presets     shapes by name, Kaplan et al.'s among them
    cost        parameters, FLOPs a token
    build       from a config to (graphdef, params), and from these to hidden states
    decoder     the skeleton: embedding, blocks, last norm; stacked blocks, unrolled or scanned
    layers      norm, rotary positions, attention's projections, SwiGLU, dropout
    attention   causal attention: fused, or in blocks of queries
    llama       LLaMA, and the Universal Transformer, which repeats LLaMA's block
    gpt_neox    GPT-NeoX: parallel branches, LayerNorm, biases
    moe         a sparse mixture of experts, as Mixtral
    lstm        a stacked LSTM
    sharding    how parameters and activations lie on a mesh of devices

The first three load no jax.
"""
