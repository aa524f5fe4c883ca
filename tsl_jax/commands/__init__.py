"""The verbs of `tsl`: one module each, a frozen dataclass `Command` and `run(command)`."""
