"""What a command does to the logging of its process ends with the test that called it."""

from __future__ import annotations

import io
import logging

import pytest
from absl import logging as absl_logging

from data_pipelines.quickstart.__main__ import main
from tests.support.logging_state import logging_kept


def test_a_command_leaves_no_handler_no_level_and_nothing_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    root.addHandler(logging.NullHandler())
    handlers, level, disabled, verbosity = (
        root.handlers[:], root.level, root.manager.disable, absl_logging.get_verbosity()
    )  # fmt: skip
    with logging_kept():
        closed = io.StringIO()
        logging.basicConfig(level=logging.INFO, stream=closed, force=True)
        logging.disable(logging.WARNING)
        absl_logging.set_verbosity(absl_logging.DEBUG)
        closed.close()
    assert root.handlers == handlers
    assert (root.level, root.manager.disable, absl_logging.get_verbosity()) == (level, disabled, verbosity)
    logging.info("a line")
    absl_logging.info("a line")
    assert "Logging error" not in capsys.readouterr().err


def test_every_test_keeps_the_logging(request: pytest.FixtureRequest) -> None:
    assert "logging_of_before" in request.fixturenames


def test_the_commands_of_the_records_set_up_the_root_logger() -> None:
    """Their level would otherwise stay for the next test."""
    with logging_kept():
        with pytest.raises(SystemExit):
            main(["--unknown"])
        assert logging.getLogger().level == logging.INFO
