"""Beam search and long prompts: our generation against `generate` of transformers on the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwenvl_jax.config import Config
from qwenvl_jax.conversion import parity, to_torch
from qwenvl_jax.conversion.torch_model.visual import normalise
from qwenvl_jax.data.examples import Prompt
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation.generate import Generator, request_of
from qwenvl_jax.evaluation.generation.sampling import BeamSearch, Limits
from qwenvl_jax.models.loaded import LoadedModel


@pytest.fixture(scope="module")
def prompts(config: Config, tokenizer: Tokenizer) -> list[Prompt]:
    """Prompts with up to three pictures, below and beyond the trained length of 32 tokens."""
    return parity.example_prompts(tokenizer, config.model.resampler.queries, config.data.image_size)


@pytest.fixture(scope="module")
def torch_model(released: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(released), trust_remote_code=True).eval()


def padded(prompts: list[Prompt]) -> dict[str, torch.Tensor]:
    """The inputs of the released model, padded on the left."""
    longest = max(len(prompt.tokens_L) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.tokens_L) :] = torch.from_numpy(prompt.tokens_L.astype(np.int64))
        mask[row, longest - len(prompt.tokens_L) :] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    images = [
        normalise(torch.from_numpy(np.array(prompt.images_IHWC))) for prompt in prompts if len(prompt.images_IHWC)
    ]
    return inputs | ({"pixel_values": torch.cat(images)} if images else {})


@torch.no_grad()
def theirs(
    model: Any, prompts: list[Prompt], limits: Limits, search: BeamSearch
) -> tuple[list[list[list[int]]], np.ndarray]:
    """The answers of every prompt without stop ids, and their scores."""
    inputs = padded(prompts)
    output = model.generate(
        **inputs, do_sample=False, num_beams=search.beams, num_return_sequences=search.beams,
        length_penalty=search.length_penalty, early_stopping=search.early_stopping,
        max_new_tokens=limits.max_new_tokens, min_new_tokens=limits.min_new_tokens or None,
        eos_token_id=list(limits.stop_ids), pad_token_id=limits.stop_ids[0],
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    answers = []
    for row in output.sequences[:, inputs["input_ids"].shape[1] :].tolist():
        ends = [column for column, token in enumerate(row) if token in limits.stop_ids]
        answers.append(row[: ends[0]] if ends else row)
    grouped = [answers[first : first + search.beams] for first in range(0, len(answers), search.beams)]
    return grouped, output.sequences_scores.reshape(len(prompts), search.beams).numpy()


@torch.no_grad()
def greedy(model: Any, prompts: list[Prompt], limits: Limits) -> list[list[int]]:
    """The most likely answers without stop ids."""
    inputs = padded(prompts)
    output = model.generate(
        **inputs, do_sample=False, max_new_tokens=limits.max_new_tokens, eos_token_id=limits.stop_ids[0], pad_token_id=0
    )
    rows = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(limits.stop_ids[0])] if limits.stop_ids[0] in row else row for row in rows]


CASES = [
    (BeamSearch(2), 1),
    (BeamSearch(4, 0.0, True), 3),
    (BeamSearch(3, 2.0, "never"), 3),
    (BeamSearch(3, -1.0, False), 3),
]


@pytest.mark.slow
@pytest.mark.parametrize("search,stops", CASES)
def test_beams_are_those_of_transformers(
    params: Any, config: Config, prompts: list[Prompt], torch_model: Any, search: BeamSearch, stops: int
) -> None:
    """The stop ids are tokens that greedy answers contain, so that some answers end early."""
    model = LoadedModel(params, config.model, config.compute)
    requests = [request_of(number, prompt) for number, prompt in enumerate(prompts)]
    free = {answer.key: answer.ids for answer in Generator(model, 6).generate(requests, Limits(4))}
    stop_ids = tuple(dict.fromkeys(free[number][2] for number in range(6)))[:stops]
    limits = Limits(9, 2 if stops == 3 else 0, stop_ids)
    expected, scores = theirs(torch_model, prompts, limits, search)
    longest = max(len(prompt.tokens_L) for prompt in prompts)
    answers = {answer.key: answer.beams for answer in Generator(model, 12).search(requests, limits, search, longest)}
    assert stops == 1 or len({len(ids) for each in expected for ids in each}) > 1
    for number, group in enumerate(expected):
        assert [beam.ids for beam in answers[number]] == group
        np.testing.assert_allclose([beam.score for beam in answers[number]], scores[number], rtol=1e-4)


@pytest.mark.slow
def test_prompts_around_2048_tokens_in_one_batch(
    params: Any, config: Config, tokenizer: Tokenizer, tmp_path: Any
) -> None:
    """With the released 2,048: a prompt beyond it has NTK and log-n, one that crosses it while decoding log-n alone."""
    decoder = dataclasses.replace(config.model.decoder, train_length=2048)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    torch_model = AutoModelForCausalLM.from_pretrained(
        str(to_torch.release(params, config, tmp_path / "long_release")), trust_remote_code=True
    ).eval()
    rng = np.random.default_rng(0)
    side = config.data.image_size
    queries = config.model.resampler.queries
    special = tokenizer.special
    prompts = []
    for length, pictures in ((2041, 1), (2100, 8), (4101, 0), (12, 1)):
        ids = rng.integers(0, special.first, length).astype(np.int32)
        slots = np.full(length, -1, np.int32)
        for number in range(pictures):  # spread over the prompt, as the examples of a few-shot prompt are
            start = number * (length // max(pictures, 1))
            ids[start : start + queries + 2] = [special.img, *[special.imgpad] * queries, special.img_end]
            slots[start + 1 : start + 1 + queries] = np.arange(number * queries, (number + 1) * queries)
        prompts.append(Prompt(ids, slots, rng.integers(0, 256, (pictures, side, side, 3), np.uint8)))

    limits = Limits(16, stop_ids=(special.eot,))
    model = LoadedModel(params, config.model, config.compute)
    requests = [request_of(number, prompt) for number, prompt in enumerate(prompts)]
    ours = {answer.key: answer.ids for answer in Generator(model, 4).generate(requests, limits, longest=4101)}
    assert limits.max_new_tokens > 2048 - 2041  # the first answer crosses the trained length
    together = greedy(torch_model, prompts, limits)
    for number, prompt in enumerate(prompts):
        assert ours[number] == together[number]
        assert ours[number] == greedy(torch_model, [prompt], limits)[0]
