"""How a model is tuned: data, the training loop, its strategies, checkpoints and what proves the result."""
