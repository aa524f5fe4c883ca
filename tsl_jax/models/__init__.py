"""Decoders: shapes (`config`), their parts (`layers`), the LLaMA architecture, and `build`, which hands out pytrees."""
