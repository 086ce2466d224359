"""The kinds of values of config keys, which `constraints` checks."""

from __future__ import annotations

from typing import Annotated

from qwenvl_jax.config.constraints import OneOf, Range

REMAT_POLICIES = ("none", "matmuls_saved", "attention_saved", "full")
DTYPES = ("float32", "bfloat16")

LARGEST_SIZE = 2**24  # no size comes near it; a larger number is a typing error
# float32 still holds the squares and the quotients of these two.
LARGE = 1e30
SMALL = 1e-30

Size = Annotated[int, Range(1, LARGEST_SIZE)]
SizeOrZero = Annotated[int, Range(0, LARGEST_SIZE)]
Count = Annotated[int, Range(1, 2**31 - 1)]  # the devices count steps in int32
Seed = Annotated[int, Range(0, 2**32 - 1)]
NormEps = Annotated[float, Range(0, 1, above=True)]
Beta = Annotated[float, Range(0, 1, below=True)]
Dtype = Annotated[str, OneOf(DTYPES)]
RematPolicy = Annotated[str, OneOf(REMAT_POLICIES)]
