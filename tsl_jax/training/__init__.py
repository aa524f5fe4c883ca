"""Training: text and a model become the folder of a run, with checkpoints and the loss surface measured along the way.

config           `TrainConfig` and its parts, to a file and back, and the hash that names a run
checks           what can be known to be wrong with a configuration before any work
timeline         `RunTimeline`: steps, tokens, evaluations, learning rates, calls, resolved once from the configuration
interventions    `--changes` in mid-run, and the segments of steps between
bad_losses       what a NaN or a spike is, one rule for training
loop             `train`: from the first step to the last, evaluating and saving on the way
setup            what a run needs before its first step;  programs  what it calls, compiled ahead
step             the training step, in microbatches and several a call
noise_scale      the gradient noise scale, from a batch and its microbatches, or its parts on devices
objective        position-weighted cross-entropy in chunks;  optimizer  AdamW on the planned learning rate
evaluation       the loss of every position on fixed windows, plain and additive
reevaluation     the checkpoints of a run on other text or windows
checkpoint       the state on disk;  run_dir  config, record and metrics in the folder of a run
provenance       versions, hardware, commit and text that a run was made with
compile_ahead    the step compiled for devices that are not here
mesh             devices in the axes (data, fsdp, tensor);  resources  memory of a step, rates, utilisation
hosts            several processes in one run: what they share, who writes, and how all end when one does
position_weights static, from a file, or following the run
"""
