"""Published models: their checkpoints become loss surfaces, and checkpoints of ours become theirs. Benchmarks of both.

options           which revisions and tasks are measured and how, and the tokens each has seen
checkpoint_files  folders of safetensors, and names on the Hugging Face hub
architectures     architectures of transformers as data: entries of config.json, names and layouts of tensors
description       config.json to a model of ours, and back
weights           tensors to parameters, and back
evaluation_text   windows of text under the tokenizer of a checkpoint
revisions         `evaluate_revisions`: a surface over the revisions of a model
callables         `evaluate`: the surface of any function from tokens to logits
export            a run, or parameters, as a checkpoint of transformers
harness           our models behind the interface of lm-evaluation-harness, and its tasks
zero_shot         `benchmark`: tasks on every checkpoint of a run or a published model, each pair kept
zero_shot_table   accuracies beside tokens and losses, and their correlations over checkpoints
"""
