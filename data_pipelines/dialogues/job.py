"""The settings of a run, its input folders and its work folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from etils import epath

from data_pipelines.build.job import digest_of
from qwenvl_jax.data.readers.record_folder import RecordReader, read_manifest, split_digest
from qwenvl_jax.data.record_format import MANIFEST
from qwenvl_jax.data.tasks import RECORD_TASKS
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.endpoint import Address
from qwenvl_jax.runtime.errors import UserError

NAME = "dialogues"
TEXT_TASKS = ("dialogue", "text")


@dataclasses.dataclass(frozen=True)
class EndpointSettings:
    """How a language model is asked. The key is only named here; see `endpoint.Endpoint`.

    Attributes:
      url: up to and with the version, such as "https://api.example.com/v1".
      model: its name at the endpoint.
      key_variable: the environment variable that holds the key; "" for an endpoint that needs none.
      temperature: of sampling.
      max_tokens: of one reply.
      tries: how often the model is asked about a picture until its reply is good.
      timeout: of one request, in seconds.
      retries: how often a request that was not answered is sent again.
      backoff: seconds before the first retry; each further wait is twice as long.
      concurrency: requests at the same time.
      requests_per_minute, tokens_per_minute: 0 for no limit.
      input_price, output_price: of a million tokens, in any currency.
      budget: of all replies, in the same currency; 0 for no limit.
    """

    url: str
    model: str
    key_variable: str = ""
    temperature: float = 0.7
    max_tokens: int = 1024
    tries: int = 3
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    concurrency: int = 4
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    input_price: float = 0.0
    output_price: float = 0.0
    budget: float = 0.0

    @property
    def address(self) -> Address:
        """The endpoint and its key."""
        return Address(self.url, self.key_variable, self.timeout)

    def of_result(self) -> dict[str, Any]:
        """The settings on which the replies depend, not how fast they come and what they cost."""
        return {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "tries": self.tries,
        }


@dataclasses.dataclass(frozen=True)
class DialogueJob:
    """One run.

    Attributes:
      records: record folders of annotated pictures.
      texts: record folders of dialogues or texts without pictures.
      output: the folder to write.
      count: of dialogues; 0 for as many as the pictures allow.
      seed: of everything that is drawn.
      text_share: of all dialogues, those without a picture.
      self_instruction: share of the dialogues about pictures that the language model writes.
      passes: how many dialogues a picture may be in.
      weights: of the kinds of exchange.
      split: of all inputs.
      dialogues_per_shard: of the output.
      code: digest of the code (`build.job.code_digest`).
      replies: the folder of the stored replies.
      endpoint: None without self-instruction.
    """

    records: tuple[str, ...]
    texts: tuple[str, ...]
    output: str
    count: int
    seed: int
    text_share: float
    self_instruction: float
    passes: int
    weights: Mapping[str, float]
    split: str
    dialogues_per_shard: int
    code: str
    replies: str
    endpoint: EndpointSettings | None = None

    def __hash__(self) -> int:
        return hash((self.records, self.texts, self.output, self.seed))

    @property
    def work(self) -> epath.Path:
        """The work folder, next to the output."""
        output = storage.path(self.output)
        return output.parent / f".{output.name}.work"

    @property
    def building(self) -> epath.Path:
        """The record folder while it is not finished."""
        return self.work / "building"

    @property
    def folders(self) -> tuple[str, ...]:
        """All inputs: a position is the number of a folder here and the number of a record in it."""
        return (*self.records, *self.texts)

    def as_json(self) -> dict[str, Any]:
        """Everything that the output depends on, with the contents of the inputs."""
        return {
            "inputs": {"records": _contents(self.records, self.split), "texts": _contents(self.texts, self.split)},
            "count": self.count,
            "seed": self.seed,
            "text_share": self.text_share,
            "self_instruction": self.self_instruction,
            "passes": self.passes,
            "weights": dict(self.weights),
            "dialogues_per_shard": self.dialogues_per_shard,
            "endpoint": self.endpoint.of_result() if self.endpoint and self.self_instruction else None,
            "code": self.code,
        }

    def digest(self) -> str:
        """Of `as_json`."""
        return digest_of(self.as_json())


def _contents(folders: tuple[str, ...], split: str) -> list[dict[str, Any]]:
    """Name and digest of the contents of record folders; where they are does not matter."""
    contents = []
    for folder in folders:
        manifest = read_manifest(folder)
        contents.append({"name": manifest.get("name", ""), "digest": split_digest(manifest["splits"][split])})
    return contents


def record_folders(folder: str, split: str, tasks: tuple[str, ...]) -> list[str]:
    """The record folders that a user means: the folder, or those of its subfolders that have one of the tasks.

    Raises:
      UserError: if there are none, or none has the split.
    """
    where = storage.path(folder)
    if storage.exists(where / "dataset_info.json"):
        candidates = [where]
    elif storage.exists(where / MANIFEST) and storage.is_folder(where):
        candidates = [where / name for name in storage.names(where) if storage.exists(where / name / MANIFEST)]
    else:
        read_manifest(where)  # says what is wrong
        candidates = [where]
    usable = []
    for candidate in candidates:
        splits = read_manifest(candidate)["splits"]
        if split in splits and set(splits[split]["tasks"]) & set(tasks):
            usable.append(str(candidate))
    if not usable:
        raise UserError(
            f"{folder} has no records of the split {split!r} with one of the tasks {', '.join(tasks)}; name a folder "
            f"that has ({', '.join(RECORD_TASKS)} are all tasks)"
        )
    return usable


@functools.lru_cache(maxsize=64)
def reader(folder: str, split: str) -> RecordReader:
    """The reader of a folder, opened once per process."""
    return RecordReader(folder, split)


def write_state(job: DialogueJob) -> str:
    """Empties the work folder if it is that of other inputs, settings or code; the digest of these."""
    reader.cache_clear()  # a folder may have been written again under the same name
    state = job.work / "state.json"
    digest = job.digest()
    if storage.exists(state):
        try:
            if artifacts.read_json(state) == {"digest": digest}:
                return digest
        except UserError:
            pass
    for name in storage.names(job.work) if storage.is_folder(job.work) else ():
        storage.remove(job.work / name)
    artifacts.write_json(state, {"digest": digest})
    return digest
