"""How gradients become updates: optimizers and learning-rate schedules, each a choice of the config."""
