"""From text to token streams, training batches and evaluation windows.

A configuration names text; it is read, split into training and held-out documents, cleaned of near-copies, encoded and
kept; runs then map the token streams and take the sequences and windows they need.

config: which text, how it is split and tokenised, its mixture, its windows (standard library only)
corpora: the corpus of a configuration, from the cache or built into a folder
preparation: read, split, take out near-copies, train the tokenizer, encode, write
documents: a document, its side of the split, and the store of documents in preparation
deduplicate: what documents have in common, counted in blocks
tokenizer: the byte-level BPE of a corpus
cache: prepared corpora on disk, verified and made whole or not at all
batches: training sequences of all domains, in fixed shares
windows: the fixed windows of evaluation
text_files: a user's text, found by globs and read into documents
text_formats: the texts in a .txt, .jsonl or .parquet file
parquet_text: the texts in a column of a .parquet file, in bounded memory
compression: .gz and .zst files, read as if they were not compressed
token_files: pretokenised text
hub: texts of Hugging Face datasets
installed: text that installed packages bring
"""
