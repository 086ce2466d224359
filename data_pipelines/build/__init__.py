"""The engine: from a corpus to record folders, exactly once. See docs/pipelines.md."""
