"""The verbs of the command line: each a dataclass, whose fields are its options, and a function that runs it.

train: `tsl train`, `tsl demo`;  evaluate: `tsl evaluate`, `tsl export`
benchmark: `tsl benchmark`, tasks of lm-evaluation-harness
corpora: `tsl corpora` lists, builds and describes text
import_table: `tsl import` makes surfaces of logs and tables
fit, fits, forecast, backtest, compare, report, scale, select, sweep, reproduce, models: the verb of that name
watch: `tsl watch`, `tsl check`, `tsl score`: a running job, and registered forecasts; watch_display: what it shows
analysis: fit, expected R2 and backtest of one surface, for the report
options: options from the command line and from files, and the stamp of every output
progress: live bars
"""
