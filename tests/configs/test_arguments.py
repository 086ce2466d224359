"""The arguments of config files: named, with defaults, and one sentence for every other spelling."""

from __future__ import annotations

import pytest

from configs import stage2_multitask
from configs.arguments import named_arguments
from configs.quickstart import eval as quickstart_eval
from configs.quickstart import stage0_text
from qwenvl_jax.runtime import commandline


@named_arguments
def arguments(mesh: str = "v5p", data: str = "data", scale: float = 1.0) -> tuple[str, str, float]:
    return mesh, data, scale


def test_arguments_have_defaults_and_types() -> None:
    assert arguments() == arguments(None) == arguments("") == ("v5p", "data", 1.0)
    assert arguments("mesh=v6e,data=gs://b/d") == ("v6e", "gs://b/d", 1.0)
    assert arguments("scale=0.5") == arguments(scale=0.5) == ("v5p", "data", 0.5)
    assert arguments(" data = a=b , mesh=cpu ") == ("cpu", "a=b", 1.0)


MISTAKES = {
    "dta=d": "there is no argument 'dta', only mesh, data, scale; did you mean 'data'?",
    "runs=r": "there is no argument 'runs', only mesh, data, scale$",
    "mesh=cpu,data": "the argument 'data' has no value; write data=VALUE, or leave it out",
    "mesh": "the argument 'mesh' has no value; write mesh=VALUE, or leave it out",
    "mesh=cpu,d": "the argument 'd' has no name; write name=value, with a name of mesh, data, scale",
    "mesh=cpu,": "the argument '' has no name",
    "mesh=cpu,mesh=gpu": "the argument 'mesh' is given twice",
    "data=": "the argument 'data' has no value; leave it out for 'data'",
    "scale=half": "the argument scale=half must be a number",
    "v5p,a,1,b": "the argument 'v5p' has no name",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_other_arguments_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=MISTAKES[text]):
        arguments(text)


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match=r"there is no argument 'meshes'.*did you mean 'mesh'"):
        arguments(meshes="cpu")


def test_an_argument_in_text_and_by_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="'mesh' is given twice"):
        arguments("mesh=cpu", mesh="gpu")


@pytest.mark.parametrize("default", [True, 5, None])
def test_a_default_that_the_command_line_cannot_set_is_refused(default: object) -> None:
    def get_config(flag: object = default) -> object:
        return flag

    with pytest.raises(TypeError, match="'flag' must be a string or a float"):
        named_arguments(get_config)


FORMER = {
    "configs/stage2_multitask.py:v5p": "mesh=v5p",
    "configs/stage2_multitask.py:v5p,gs://b/d,gs://b/r": "mesh=v5p,data=gs://b/d,runs=gs://b/r",
    "configs/stage2_multitask.py:,gs://b/d": "data=gs://b/d",
    "configs/quickstart/stage0_text.py:d,r,0.01": "data=d,runs=r,scale=0.01",
    "configs/quickstart/eval.py:d,r": "data=d,runs=r",
}


@pytest.mark.parametrize("written", FORMER)
def test_arguments_without_names_are_answered_with_their_new_spelling(written: str) -> None:
    file, _, text = written.partition(":")
    modules = (stage2_multitask, stage0_text, quickstart_eval)
    (module,) = (module for module in modules if str(module.__file__).endswith(file))
    with pytest.raises(ValueError) as refused:
        module.get_config(text)
    assert str(refused.value) == f"its arguments have names; write --config={file}:{FORMER[written]}"


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "1e9"])
def test_a_scale_out_of_range_is_refused(scale: str) -> None:
    for module in (stage0_text, quickstart_eval):
        with pytest.raises(ValueError, match="must be above 0 and at most 1000"):
            module.get_config(f"scale={scale}")


def test_a_file_tells_its_arguments() -> None:
    assert commandline.argument_names("configs/stage2_multitask.py") == ("mesh", "data", "runs", "batch")
    assert commandline.argument_names("configs/quickstart/eval.py") == ("data", "runs", "scale", "size")
    assert commandline.argument_names("tests/support/tiny_config.py") == ()
