"""An OpenAI-compatible server that judges two answers, and fails in the ways of `chat_server`.

    python -m tests.support.judge_server --log=FILE [--faults=..] [--replies=good|mixed|bad]

The score of an answer is the number of its words, at most 9; the first one gets a point more. `mixed` answers nonsense
to some requests.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from tests.support.chat_server import Handler, Server

NONSENSE = ("Both are good.", "11 4", "nan 3", "7", "")


class JudgeHandler(Handler):
    """One request to the judge."""

    def _answer(self, request: dict[str, Any]) -> None:
        user = request["messages"][1]["content"]
        text = judgement(user)
        kind = self.server.flags.replies
        number = int(re.findall(r"\d+", user)[0]) if re.search(r"\d", user) else 0
        if kind == "bad" or (kind == "mixed" and number % 5 == 4):
            text = NONSENSE[number // 5 % len(NONSENSE)]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self._send(200, json.dumps({"choices": [choice]}).encode())


def judgement(user: str) -> str:
    """The line of scores for a prompt of `evaluation.judge.USER`."""
    first, second = re.findall(r"Answer of assistant \d:\n(.*?)\n\n", user, re.DOTALL)
    return f"{min(9, len(first.split())) + 1} {max(1, min(9, len(second.split())))}"


def main() -> None:
    """Serves until it is ended; the first line of output has the URL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--faults", default="none")
    parser.add_argument("--replies", default="good")
    server = Server(parser.parse_args())
    server.RequestHandlerClass = JudgeHandler
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
