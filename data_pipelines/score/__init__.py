"""CLIP scores of pairs, computed in a step of a build."""
