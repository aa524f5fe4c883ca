"""From text to token streams (`corpora`), training batches (`mixture`) and evaluation windows (`windows`)."""
