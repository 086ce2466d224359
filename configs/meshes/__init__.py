"""One recipe per kind of hardware: the mesh, the precision and the compiler options of a stage.

Each recipe has `apply(config)`, which sets `config.mesh` and `config.compute`, and `STAGES`, which says by the name of
a stage what else it changes in the config. A name that ends in `_rows` holds for the argument `batch=rows` alone. The
numbers of the TPU recipes were chosen by the figures of `python -m qwenvl_jax.plan` (docs/performance.md).
"""
