"""The ablations of the paper's appendix E: each file declares its arms, which `python -m qwenvl_jax.ablate` trains."""
