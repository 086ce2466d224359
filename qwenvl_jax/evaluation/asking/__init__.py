"""How a benchmark is asked: from records to questions with exemplars, and from a model's answers to rows."""
