"""How a model answers: prompts in slots of one cache, beams, likelihoods of options, and pictures encoded once."""
