"""The boxes of an answer over the API, in a dialogue with pictures of different sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.serving.api import ApiSettings
from qwenvl_jax.serving.engine import Engine
from qwenvl_jax.serving.options import EngineSettings
from qwenvl_jax.serving.slot_batch import SlotBatch
from tests.evaluation.samples import grey as picture
from tests.support.api_server import data_url, question, serving


def test_boxes_lie_in_the_picture_that_is_meant(
    loaded: LoadedModel, config: Config, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an answer put into the mouth of the model, because an untrained one writes no boxes."""
    read = SlotBatch.read

    def spoken(batch: SlotBatch, told: Any) -> Iterator[Any]:
        words = tokenizer.special_by_name
        box = [words["<box>"], *tokenizer.encode("(100,200),(1000,800)"), words["</box>"]]
        for slot, new in read(batch, told):
            yield slot, new._replace(ids=[*box, *tokenizer.encode(" Picture 2 "), *box], ended="stop")

    monkeypatch.setattr(SlotBatch, "read", spoken)
    with (
        Engine(loaded, tokenizer, config.data.image_size, EngineSettings(slots=2)) as engine,
        serving(engine, ApiSettings("tiny")) as (url, _),
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        asked = question("Where is it in Picture 1?", *map(data_url, [picture(200, 10), picture(50, 50)]))
        first = {"ref": "", "image": 0, "box": [20.0, 2.0, 200.0, 8.0], "thousandths": [100, 200, 1000, 800]}
        second = {"ref": "", "image": 1, "box": [5.0, 10.0, 50.0, 40.0], "thousandths": [100, 200, 1000, 800]}
        message = client.chat.completions.create(**asked).choices[0].message
        assert (message.model_extra or {})["boxes"] == [first, second]
        *_, end = client.chat.completions.create(**asked, stream=True)
        assert (end.choices[0].delta.model_extra or {})["boxes"] == [first, second]
        follow_up: Any = [*asked["messages"], message, {"role": "user", "content": "And the dog?"}]
        again = client.chat.completions.create(model="tiny", messages=follow_up).choices[0].message
        assert [region["image"] for region in (again.model_extra or {})["boxes"]] == [1, 1], "the answer named it last"
