"""Cleaning rules; every rule counts what it changed and what it dropped."""
