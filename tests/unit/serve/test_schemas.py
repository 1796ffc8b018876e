"""Request bodies: what is honoured, what is refused, and how the refusal reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.instance.http.schemas import CompletionBody, DetokenizeBody, TokenizeBody, decode_body


def body(**values: Any) -> CompletionBody:
    return decode_body(json.dumps({"prompt": "a", **values}).encode(), CompletionBody)


@pytest.mark.parametrize(
    ("prompt", "single"),
    [("text", "text"), ([1, 2], [1, 2]), (["text"], "text"), ([[1, 2]], [1, 2]), ([], []), ([[]], []), ("", "")],
)
def test_prompts(prompt: Any, single: Any) -> None:
    assert body(prompt=prompt).single_prompt() == single


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [1, "a"], ["a", 1], [[1], 2]])
def test_several_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="one text or one list of token ids"):
        body(prompt=prompt).single_prompt()


@pytest.mark.parametrize("prompt", [None, 1, 1.5, {}, [1.5], [True], [None], [["a"]], [[[1]]]])
def test_prompts_of_another_type_are_refused_with_their_place(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"\$\.prompt"):
        body(prompt=prompt)


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"1", b"{", b'{"prompt": "a"} x', b"\xff", b'{"prompt": "\xff"}', b'{"a":' * 10**5]
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="request body"):
        decode_body(raw, CompletionBody)


@pytest.mark.parametrize(
    ("name", "neutral", "wish"),
    [
        ("n", 1, 2),
        ("best_of", 1, 3),
        ("logprobs", None, 5),
        ("logprobs", None, 0),
        ("suffix", "", "x"),
        ("presence_penalty", 0.0, 0.5),
        ("repetition_penalty", 1.0, 1.1),
        ("logit_bias", {}, {"1": 2}),
        ("stop_token_ids", [], [3]),
        ("n", None, True),
        ("skip_special_tokens", True, False),
    ],
)
def test_parameters_that_are_not_implemented(name: str, neutral: Any, wish: Any) -> None:
    body(**{name: neutral})
    with pytest.raises(InvalidRequestError, match=f"{name}=.* is not supported"):
        body(**{name: wish})


def test_unknown_parameters_are_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidRequestError, match="max_token") as caught:
        body(max_token=3)
    assert "'max_tokens'" in caught.value.detail
    with pytest.raises(InvalidRequestError, match="unknown parameter 'n'"):
        decode_body(b'{"prompt": "a", "n": 1}', TokenizeBody)
    body(user="somebody")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**40}, "top_k"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_sampling_out_of_range(values: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidRequestError, match=what):
        body(**values).sampling()


def test_sampling_defaults_and_values() -> None:
    sampling = body().sampling()
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (1.0, 1.0, 0, None)
    sampling = body(temperature=0, top_p=0.5, top_k=-1, seed=-3).sampling()
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 0, -3)


@pytest.mark.parametrize("count", [0, -1])
def test_max_tokens_below_one(count: int) -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        body(max_tokens=count).output_tokens()


def test_max_tokens_default_is_openais() -> None:
    assert body().output_tokens() == 16
    assert body(max_tokens=None).output_tokens() == 16


def test_stop_strings() -> None:
    assert body(stop="x").stop_strings() == ("x",)
    assert body(stop=["x", "y"]).stop_strings() == ("x", "y")
    assert body(stop=None).stop_strings() == ()
    for wrong in ("", ["x", ""], ["x"] * 17):
        with pytest.raises(InvalidRequestError, match="stop"):
            body(stop=wrong).stop_strings()


def test_stream_options_need_a_stream() -> None:
    assert body(stream=True, stream_options={"include_usage": True}).include_usage()
    assert not body(stream=True).include_usage()
    with pytest.raises(InvalidRequestError, match="stream=true"):
        body(stream_options={"include_usage": True}).include_usage()
    with pytest.raises(InvalidRequestError, match="stream_options"):
        body(stream=True, stream_options={"include_usages": True})


def test_detokenize_wants_integers() -> None:
    assert decode_body(b'{"tokens": [1, 2]}', DetokenizeBody).tokens == [1, 2]
    with pytest.raises(InvalidRequestError, match=r"\$\.tokens\[1\]"):
        decode_body(b'{"tokens": [1, "2"]}', DetokenizeBody)
