"""Fine-tuning of a finished model on dialogues of your own."""
