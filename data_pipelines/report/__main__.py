"""Writes report.html of a finished output again, or of a folder that holds several outputs.

python -m data_pipelines.report data/cc12m [--vocabulary=qwen.tiktoken]
python -m data_pipelines.report data
"""

from __future__ import annotations

from collections.abc import Sequence

from data_pipelines.report.files import manifest_of, outputs_in
from data_pipelines.report.overview import overview
from data_pipelines.report.page import REPORT, write_report
from qwenvl_jax.config.schema import TokenizerConfig
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error


def _tokenizer(vocabulary: str) -> Tokenizer:
    kind = "sentencepiece" if vocabulary.endswith(".model") else "qwen"
    return load_tokenizer(TokenizerConfig(kind=kind, path=vocabulary))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one sentence on a user's mistake."""
    parser = Parser("python -m data_pipelines.report", __doc__)
    parser.add_argument("folder", metavar="FOLDER", help="an output, or a folder of outputs, on a disk or gs://")
    parser.add_argument("--vocabulary", default="", help="count tokens by this file: qwen.tiktoken or a .model")
    with exit_on_user_error():
        arguments = parser.parse_args(argv)
        folder = storage.path(arguments.folder)
        manifest = manifest_of(folder)
        if manifest is not None:
            write_report(folder, manifest, _tokenizer(arguments.vocabulary) if arguments.vocabulary else None)
        else:
            outputs = outputs_in(folder)
            if not outputs:
                raise UserError(
                    f"{folder} is not an output of python -m data_pipelines and contains none; name another folder"
                )
            if arguments.vocabulary:
                raise UserError(f"--vocabulary needs one output; name one of {', '.join(list(outputs)[:5])}")
            linked = {name for name in outputs if storage.exists(folder / name / REPORT)}
            artifacts.write_text(folder / REPORT, overview(outputs, linked))
        print(folder / REPORT)


if __name__ == "__main__":
    main()
