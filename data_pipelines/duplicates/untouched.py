"""Lists the evaluation samples that no pair of the built corpora was close to, for scores on clean samples.

    python -m data_pipelines.duplicates.untouched --index=evaluation.index --output=clean.json data/laion_en data/cc12m

The output has "clean" and "touched", lists of "source/record id" in the order of the index.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterable, Sequence

from etils import epath

from data_pipelines.duplicates.decontaminate import clean_ids, not_in_evaluation
from data_pipelines.duplicates.evaluation_index import load_index
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error


def touched_ids(folders: Iterable[epath.PathLike], digest: str) -> set[str]:
    """The evaluation samples that the manifests of built corpora name.

    Args:
      folders: outputs of `python -m data_pipelines`.
      digest: the sha256 of the index that all of them must have been built with.

    Raises:
      UserError: if a corpus was built without this index.
    """
    touched: set[str] = set()
    for folder in folders:
        manifest = artifacts.read_json(storage.path(folder) / "manifest.json")
        recipe = manifest.get("job", {}).get("recipe", [])
        if not any(each.get("digest") == digest for each in recipe):
            raise UserError(f"{folder} was not built with this index; build it with --evaluation_index")
        for counts in manifest["rules"]:
            if counts["rule"] == not_in_evaluation.__name__:
                touched |= set(counts["causes"])
    return touched


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the lists; exit code 2 with one sentence on a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    parser = Parser("python -m data_pipelines.duplicates.untouched", __doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="corpora, built with --evaluation_index")
    parser.add_argument("--index", required=True, help="the index that they were built with")
    parser.add_argument("--output", required=True, help="the JSON file to write, on a disk or gs://")
    with exit_on_user_error():
        arguments = parser.parse_args(argv)
        digest = hashlib.sha256(storage.read_bytes(arguments.index)).hexdigest()
        index = load_index(arguments.index, digest)
        clean = clean_ids(index, touched_ids(arguments.folders, digest))
        known = set(clean)
        touched = [name for name in index.ids if name not in known]
        artifacts.write_json(arguments.output, {"clean": clean, "touched": touched})
        logging.info(f"{arguments.output}: {len(clean)} of {len(index.ids)} evaluation samples are clean")


if __name__ == "__main__":
    main()
