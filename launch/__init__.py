"""Builds the commands that bring a stage to the cloud, prints them with their reasons, and runs them on request."""
