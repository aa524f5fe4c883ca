"""Training: text and a model become a run's folder, with checkpoints and the loss surface measured along the way."""
