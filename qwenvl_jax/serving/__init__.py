"""Answers for many who ask at once: the engine, conversations with it, and the server around it."""
