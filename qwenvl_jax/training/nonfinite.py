"""Where in a computation the first number appears that is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Operations that only hold others, which are looked at instead.
_HOLDERS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_LONGEST_LOOP = 200  # layers; a longer loop counts as one operation


def first_nonfinite(function: Callable[..., Any], *arguments: Any) -> str:
    """The first operation of `function(*arguments)` with a NaN or +inf in its output; "" if there is none.

    -inf is no fault: masks consist of it. The function is compiled once, with a flag for every operation.

    Returns:
      The modules around the operation, its name, and shape and dtype of its output.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    names: list[str] = []

    def flagged(*leaves: Any) -> list[jax.Array]:
        names.clear()
        flags: list[jax.Array] = []
        _evaluate(closed.jaxpr, closed.consts, leaves, names, flags, "")
        return flags

    flags = jax.device_get(jax.jit(flagged)(*jax.tree.leaves(arguments)))
    return next((name for name, flag in zip(names, flags, strict=True) if flag), "")


def _evaluate(
    jaxpr: Any, consts: Any, arguments: Any, names: list[str], flags: list[jax.Array], above: str
) -> list[Any]:
    """Evaluates a jaxpr operation by operation, and adds the name and the flag of each to the lists."""
    values: dict[Any, Any] = {}

    def value_of(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values |= dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        inputs = [value_of(atom) for atom in equation.invars]
        scope = "/".join(part for part in (above, str(equation.source_info.name_stack)) if part)
        inner = next((equation.params[name] for name in _HOLDERS if name in equation.params), None)
        if inner is not None and _is_holder(equation):
            closed = inner if hasattr(inner, "consts") else None
            plain, inner_consts = (closed.jaxpr, closed.consts) if closed else (inner, ())
            outputs = _evaluate(plain, inner_consts, inputs, names, flags, scope)
        elif equation.primitive.name == "scan" and equation.params["length"] <= _LONGEST_LOOP:
            outputs = _evaluate_scan(equation.params, inputs, names, flags, scope)
        else:
            with equation.ctx.manager:
                outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
            outputs = list(outputs) if equation.primitive.multiple_results else [outputs]
            _flag(equation, outputs, scope, names, flags)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [value_of(atom) for atom in jaxpr.outvars]


def _evaluate_scan(
    parameters: dict[str, Any], inputs: list[Any], names: list[str], flags: list[jax.Array], scope: str
) -> list[Any]:
    """Evaluates a loop, e.g. over layers, pass by pass; the number of the pass becomes part of the names."""
    closed = parameters["jaxpr"]
    many = parameters["num_consts"]
    consts, carry, sliced = inputs[:many], inputs[many : many + parameters["num_carry"]], inputs[many:]
    sliced = sliced[parameters["num_carry"] :]
    order = range(parameters["length"])
    stacked: dict[int, list[Any]] = {}
    for index in reversed(order) if parameters["reverse"] else order:
        arguments = [*consts, *carry, *(each[index] for each in sliced)]
        outputs = _evaluate(closed.jaxpr, closed.consts, arguments, names, flags, f"{scope}[{index}]")
        carry = outputs[: len(carry)]
        stacked[index] = outputs[len(carry) :]
    return [*carry, *(jnp.stack(each) for each in zip(*(stacked[index] for index in order), strict=True))]


def _is_holder(equation: Any) -> bool:
    return equation.primitive.name in (
        *("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    )


def _flag(equation: Any, outputs: list[Any], scope: str, names: list[str], flags: list[jax.Array]) -> None:
    for output in outputs:
        if hasattr(output, "dtype") and jnp.issubdtype(output.dtype, jnp.floating):
            flags.append(jnp.any(jnp.isnan(output) | jnp.isposinf(output)))
            names.append(f"{scope or 'top'}: {equation.primitive.name} -> {output.dtype}{list(output.shape)}")


def nonfinite_leaves(tree: Any) -> list[str]:
    """The leaves of a tree that hold numbers that are not finite, by path, with the layers of stacked blocks."""
    counted = jax.device_get(jax.jit(lambda tree: jax.tree.map(_count, tree))(tree))
    lines = []
    for path, counts in jax.tree_util.tree_leaves_with_path(counted):
        if np.sum(counts):
            name = "/".join(str(getattr(key, "key", key)) for key in path)
            first = f", first in layer {int(np.argmax(counts > 0))}" if counts.ndim and "blocks" in name else ""
            lines.append(f"{name}: {int(np.sum(counts))} numbers{first}")
    return lines


def _count(leaf: jax.Array) -> jax.Array:
    """How many numbers are not finite, by the first axis if there are several."""
    bad = ~jnp.isfinite(leaf)
    return jnp.sum(bad, axis=tuple(range(1, leaf.ndim)))
