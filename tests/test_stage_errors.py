"""How a stage ends: messages and exit codes."""

import click
import pytest
from click.testing import CliRunner

from salmask.errors import InterruptedRunError, NonFiniteLossError, UserError
from stages.errors import Stage


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("wrong"), 2, "error: wrong"),
        (NonFiniteLossError("nan"), 1, "error: nan"),
        (InterruptedRunError("a signal", 15), 143, "stopped: a signal; run the same command again"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C: finished work and the last checkpoints are"),
    ],
)
def test_expected_ends_have_a_message_and_a_code(error, code, message):
    @click.command(cls=Stage)
    def stage() -> None:
        raise error

    result = CliRunner().invoke(stage)
    assert result.exit_code == code and message in result.output
    assert "Traceback" not in result.output
