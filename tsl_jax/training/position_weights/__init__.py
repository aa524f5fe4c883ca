"""Weights over positions in the training objective: formulas, files and rules that adapt as a run goes."""
