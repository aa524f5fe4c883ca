"""Experiments: a folder a study (README with its dated plan, study.py, plots.py, plans/, results/); `tsl reproduce`."""
