"""The body of a request: what is served, and that everything else is refused with its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.serving.options import NAMED_OPTIONS, AnswerOptions
from qwenvl_jax.serving.refusals import Refusal
from qwenvl_jax.serving.schema import HARMLESS, MAX_CHARACTERS, MAX_MESSAGES, NEUTRAL, ChatRequest, parse_request

HELLO = {"role": "user", "content": "Hello"}


def parsed(**changes: Any) -> ChatRequest:
    return parse_request(json.dumps({"model": "tiny", "messages": [HELLO], **changes}).encode(), max_pictures=3)


def refused(**changes: Any) -> Refusal:
    with pytest.raises(Refusal) as error:
        parsed(**changes)
    assert error.value.status == 400 and "\n" not in error.value.message
    return error.value


def picture(url: Any = "a.png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_messages_become_turns_and_addresses() -> None:
    request = parsed(
        messages=[
            {"role": "developer", "content": "Be brief."},
            user(picture("1.png"), {"type": "text", "text": "A?"}, picture("2.png")),
            {"role": "assistant", "content": "B", "boxes": [], "refusal": None, "tool_calls": None},
            user({"type": "text", "text": "C"}),
            {"role": "user", "content": "D?"},
        ]
    )
    turns, addresses = request.dialogue()
    assert addresses == ["1.png", "2.png"]
    assert turns == [
        {"role": "system", "parts": [{"text": "Be brief."}]},
        {"role": "user", "parts": [{"image": 0}, {"text": "A?"}, {"image": 1}]},
        {"role": "assistant", "parts": [{"text": "B"}]},
        {"role": "user", "parts": [{"text": "C"}, {"text": "\n"}, {"text": "D?"}]},
    ]


def test_what_foreign_programs_send_unasked_is_served() -> None:
    """Several messages of the system (Pydantic AI), names (AutoGen), answers as LiteLLM and others give them back."""
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "B",
        "name": "helper",
        "provider_specific_fields": {"boxes": []},
        "reasoning_content": None,
        "tool_calls": [],
        "annotations": [],
    }
    request = parsed(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be kind."},
            {
                **user({"type": "text", "text": "Hello", "prompt_cache_breakpoint": {"mode": "explicit"}}),
                "name": "user",
            },
            answer,
            {**HELLO, "name": "user"},
            HELLO,
        ]
    )
    turns, _ = request.dialogue()
    assert turns == [
        {"role": "system", "parts": [{"text": "Be brief."}, {"text": "\n"}, {"text": "Be kind."}]},
        {"role": "user", "parts": [{"text": "Hello"}]},
        {"role": "assistant", "parts": [{"text": "B"}]},
        {"role": "user", "parts": [{"text": "Hello"}, {"text": "\n"}, {"text": "Hello"}]},
    ]


def test_options_and_their_defaults() -> None:
    options = parsed().options(AnswerOptions())
    assert (options.temperature, options.top_p, options.top_k, options.stop) == (0, 1, 0, ())
    assert parsed().options(AnswerOptions()).seed != parsed().options(AnswerOptions()).seed, (
        "without a seed every request draws anew"
    )
    given_all = parsed(temperature=0.5, top_p=0.25, top_k=7, seed=-3, stop="X", max_completion_tokens=9).options(
        AnswerOptions()
    )
    assert (given_all.temperature, given_all.top_p, given_all.top_k) == (0.5, 0.25, 7)
    assert (given_all.seed, given_all.stop, given_all.max_new_tokens) == (-3, ("X",), 9)
    assert parsed(stop=["a", "b"], max_tokens=4).options(AnswerOptions()).stop == ("a", "b")
    assert parsed(top_p=0.3).options(AnswerOptions()).temperature == 1, "who asks for a draw gets one"
    assert parsed(top_p=0.3, temperature=0).options(AnswerOptions()).temperature == 0
    released = NAMED_OPTIONS["released"]
    assert parsed(seed=released.seed).options(released) == released


def test_parameters_that_ask_for_nothing_are_accepted() -> None:
    for name in HARMLESS:
        assert parsed(**{name: "anything"})
    for name, values in NEUTRAL.items():
        for value in (*values, None):
            assert parsed(**{name: value}), name


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_parameters_that_are_not_served_are_refused(name: str) -> None:
    error = refused(**{name: [{"type": "anything"}]})
    assert (error.param, error.code) == (name, "unsupported_parameter") and name in error.message


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
        ({"beams": 3}, "beams", "no parameter"),
        ({"n": 2}, "n", "each with its own seed"),
        ({"tool_choice": "required", "tools": [{}]}, "tool_choice", "calls no tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "ask in words"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "not served; leave it out"),
        ({"model": None}, "model", "cannot be used"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "0.5"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
        ({"seed": "x"}, "seed", "valid integer"),
        ({"stop": [1]}, "stop[0]", "valid string"),
        ({"stop": 1}, "stop", "a text or a list of texts"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": ["x"] * 17}, "stop", "17 stop strings"),
        ({"max_tokens": 2**31}, "max_tokens", "less than"),
        ({"max_completion_tokens": 10**30}, "max_completion_tokens", "less than"),
        ({"top_k": 2**31}, "top_k", "less than"),
        ({"temperature": 1e-9}, "temperature", "at least 0.0001"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "a text or a list of parts"),
        ({"messages": [HELLO, {"role": "assistant", "content": None}, HELLO]}, "messages[1].content", "a text or a"),
        ({"max_token": 3}, "max_token", "did you mean 'max_tokens'?"),
        ({"stream": 1}, "stream", "valid boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not known"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hello"}, "messages", "valid list"),
        ({"messages": [HELLO] * (MAX_MESSAGES + 1)}, "messages", "at most 1000"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "should be"),
        ({"messages": [{**HELLO, "name": 7}]}, "messages[0].name", "valid string"),
        ({"messages": [{**HELLO, "name": "Ann"}, {**HELLO, "name": "Bo"}]}, "messages[1].name", "into the texts"),
        ({"messages": [{**HELLO, "provider_specific_fields": {}}]}, "messages[0].provider_specific_fields", "only the"),
        (
            {"messages": [HELLO, {"role": "assistant", "content": "x", "tool_calls": [{}]}, HELLO]},
            "messages[1].tool_calls",
            "not known",
        ),
        ({"messages": [HELLO, {"role": "assistant"}, HELLO]}, "messages[1].content", "missing"),
        ({"messages": [{**HELLO, "weight": 0}]}, "messages[0].weight", "not known"),
        ({"messages": [{**HELLO, "boxes": []}]}, "messages[0].boxes", "only the assistant"),
        ({"messages": [user()]}, "messages", "says nothing"),
        ({"messages": [user({"type": "text", "text": " \n"})]}, "messages", "says nothing"),
        ({"messages": [user({"type": "input_audio"})]}, "messages[0].content[0].type", "image_url"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0]", "must have 'text'"),
        ({"messages": [user({**picture(), "text": "x"})]}, "messages[0].content[0]", "not 'text'"),
        ({"messages": [user(picture(7))]}, "messages[0].content[0].image_url.url", "valid string"),
        ({"messages": [user({**picture(), "image_url": "a.png"})]}, "messages[0].content[0].image_url", "object"),
        ({"messages": [user(*[picture()] * 4)]}, "messages", "4 pictures are more than 3"),
        ({"messages": [user(*[picture()] * 10_000)]}, "messages", "10,000 pictures"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "the last message must be the user's"),
        ({"messages": [HELLO, {"role": "assistant", "content": "x"}]}, "messages", "the last message"),
        ({"messages": [HELLO, {"role": "system", "content": "x"}, HELLO]}, "messages", "first messages"),
        ({"messages": [{"role": "system", "content": [picture()]}, HELLO]}, "messages[0].content", "only the user's"),
        ({"messages": [{"role": "user", "content": "x" * (MAX_CHARACTERS + 1)}]}, "messages", "characters"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], param: str, says: str) -> None:
    error = refused(**changes)
    assert error.param == param and says in error.message, error.message


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": NaN}', b'{"model": "\\ud800"}', b"[" * 100_000),
        *(b'{"a":' * 100_000, b"1" * 100_000, b'{"model": 1e999}'),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as error:
        parse_request(body, max_pictures=3)
    assert error.value.status == 400 and len(error.value.message) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*ChatRequest.model_fields, "n", "tools", "other"]), JSON)
def test_any_value_is_served_or_refused(name: str, value: Any) -> None:
    try:
        parsed(**{name: value}).options(AnswerOptions())
    except Refusal as error:
        assert error.status == 400 and error.message
    except Exception as error:
        assert type(error).__name__ == "UserError"
