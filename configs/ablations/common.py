"""What the ablations share.

Every file here has `get_config`, the config of one arm, and `STUDIES`, by the value of its argument `size` the arms and
what is shown of them: `qwenvl_jax.ablation.study.StudyConfig`. `size=full` is the paper's, `size=miniature` runs on two
CPU cores over records and runs of the quickstart.
"""

# By size: the arguments `mesh`, `data` and `runs` that are not given.
DEFAULTS = {
    "full": dict(mesh="v5p", data="data", runs="runs"),
    "miniature": dict(mesh="cpu", data="data/quickstart", runs="runs/quickstart"),
}


def arguments(size: str, mesh: str, data: str, runs: str) -> dict[str, str]:
    """The arguments that a stage takes; what is empty becomes the default of the size.

    Raises:
      ValueError: if there is no such size, or a miniature is to run on something else than CPUs.
    """
    if size not in DEFAULTS:
        raise ValueError(f"the size {size!r} is not one of {', '.join(DEFAULTS)}")
    if size == "miniature" and mesh not in ("", "cpu"):
        raise ValueError(f"the miniature runs on CPUs; leave mesh={mesh} out, or take size=full")
    given = dict(mesh=mesh, data=data, runs=runs)
    return {name: given[name] or value for name, value in DEFAULTS[size].items()}


def whole(name: str, number: float) -> int:
    """A number that must be whole and not negative. Raises ValueError if it is not."""
    if not float(number).is_integer() or number < 0:  # of NaN and infinity too
        raise ValueError(f"the argument {name}={number:g} must be a whole number")
    return int(number)
