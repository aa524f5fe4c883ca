"""Models: what they are told (`config`, `presets`) and cost (`cost`), their parts (`layers`, `stack`), a file for each
architecture, and `build`, which hands out pytrees.
"""
