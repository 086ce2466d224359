"""The training loop, the step, and what they need: state, loss, optimiser, metrics."""
