"""A page for people of a run, its fits and its forecasts, and tables in the terminal. Draws and never fits.

page: `report`, with the result in words and key figures at the top
run_sections, forecast_sections: the sections of the page
run_figures, forecast_figures, error_figures: what the page draws
figures, markup: parts of figures (plotly) and of HTML
material: surface, fits, forecasts and backtest, sorted for the page
wording: numbers, shares of a run, formulas, names of methods
json_values: summary.json, forecasts and plans as JSON
terminal_tables: the same in the terminal; selection_tables: a choice among candidates there
plots: figures for print (matplotlib)
"""

from tsl_jax.reporting.page import report

__all__ = ["report"]
