"""The former name of the audit's command."""

from __future__ import annotations

import sys

from qwenvl_jax.runtime import exit_codes

if __name__ == "__main__":
    print("error: the audit is now a command of its own; write python -m qwenvl_jax.audit", file=sys.stderr)
    sys.exit(exit_codes.MISTAKE)
