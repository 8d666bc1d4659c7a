"""The process that a model of another process environment runs in: ``python -m compdx.environments.worker``.

It is told on stdin, answers on stdout, one JSON object a line, and hands arrays over in files. What a runtime prints
goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from compdx import runtimes


def main() -> None:
    """Open the file of the first line, then score what every further line names, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        job = json.loads(sys.stdin.readline())
        runner = runtimes.open(job.pop("path"), **job)
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(settings=runner.settings)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            x = np.load(task["x"], allow_pickle=False)
            start = time.perf_counter()
            scores = runner(x)
            seconds = time.perf_counter() - start
            np.save(task["scores"], scores, allow_pickle=False)
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")
        else:
            answer(seconds=seconds)


if __name__ == "__main__":
    main()
