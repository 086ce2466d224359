"""Ablations: arms that differ in a few settings, trained one after another, and the page that compares them."""
