"""What NVIDIA's own estimator says of served runs; run by a Python that has `aiconfigurator`, and nothing
else.

    pip install aiconfigurator==0.12.0        # in an environment of its own: it pins other versions than
    cbsim
    python -m calibration.served_runs --estimator that/bin/python

Reads cases as JSON, one a line, from standard input: the arguments of `cli_estimate` and a `key`. Writes one
line of JSON for each as it is done: `key, ttft_ms, tpot_ms`, or `key, problem`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, TextIO


def estimate(case: dict[str, Any]) -> dict[str, Any]:
    """The answer to one case."""
    arguments = dict(case)
    key = arguments.pop("key")
    try:
        from aiconfigurator.cli.api import cli_estimate

        result = cli_estimate(**arguments)
    except (Exception, SystemExit) as error:
        return {"key": key, "problem": f"{type(error).__name__}: {error}"[:200]}
    return {"key": key, "ttft_ms": float(result.ttft), "tpot_ms": float(result.tpot)}


def main(lines: Iterable[str], out: TextIO) -> None:
    """Answer all cases. The estimator prints as it pleases, so standard output is kept from it."""
    for line in lines:
        answer = estimate(json.loads(line))
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    main(sys.stdin, answers)
