"""Weights over positions in the training objective: formulas, files, and rules that follow the run.

    weights         PositionWeights: formulas, the text that names a rule, what a weight must be
    sources         weights from a file, rules from a function; their hashes
    adaptive        rules: what they are given, what is made of what they return
    gradient_noise  what a rule is given, measured: loss and gradient noise by position
    updates         the weights of a run with a rule: when they are updated, kept and resumed

The adaptive rules of the library are in `tsl_jax.position_weight_rules`.
"""
