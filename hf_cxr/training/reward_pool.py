"""Rewards in processes of their own, so that they are computed while the model goes on. What they compute is in
`hf_cxr.training.rewards`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from hf_cxr.training.rewards import read_rewards, values_of, weights_of


class RewardPool:
    """Processes that share out the texts they are asked about. They end with the `with` statement, and with this
    process, whatever ends it: nobody is left to ask them.

    Args:
        words, corpus: as in `read_rewards`, which each process calls.
        size: how many processes.
    """

    def __init__(self, words: Sequence[str], corpus: Sequence[str], size: int = 1) -> None:
        self.weights = weights_of(words)
        command = [sys.executable, "-m", "hf_cxr.training.reward_pool"]
        paths = os.pathsep.join(path or str(os.curdir) for path in sys.path)
        self.processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env=os.environ | {"PYTHONPATH": paths},
                start_new_session=True,  # Ctrl-C is for this process
            )
            for _ in range(size)
        ]
        for process in self.processes:
            _send(process, {"words": list(words), "corpus": list(corpus)})

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def ask(self, predictions: Sequence[str], references: Sequence[str]) -> Callable[[], np.ndarray]:
        """Ask what texts are worth. Call the result to wait for the answer: (texts, rewards), unweighted.

        Waiting raises `ValueError` as `values_of`, and `OSError` where a process has ended.
        """
        size = len(self.processes)
        for number, process in enumerate(self.processes):
            _send(process, {"predictions": predictions[number::size], "references": references[number::size]})

        def answer() -> np.ndarray:
            values = np.zeros((len(predictions), len(self.weights)))
            for number, process in enumerate(self.processes):
                told = json.loads(process.stdout.readline() or "null")  # type: ignore[union-attr]
                if told is None:
                    raise OSError(f"a process that computes rewards has ended (exit status {process.wait()})")
                if "error" in told:
                    raise ValueError(told["error"])
                values[number::size] = np.reshape(told["values"], (-1, len(self.weights)))
            return values

        return answer


def _send(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
    try:
        print(json.dumps(message), file=process.stdin, flush=True)
    except BrokenPipeError as error:
        raise OSError(f"a process that computes rewards has ended (exit status {process.wait()})") from error


def serve(lines: Iterable[str], answer: Callable[[str], object]) -> None:
    """Read rewards from the first line, then answer each line with what its texts are worth."""
    asked = map(json.loads, lines)
    rewards = read_rewards(**next(asked))
    for texts in asked:
        try:
            told: dict[str, Any] = {"values": values_of(rewards, **texts).tolist()}
        except ValueError as error:
            told = {"error": str(error)}
        answer(json.dumps(told) + "\n")


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8") as out:
        os.dup2(2, 1)  # what a reward prints must not come between the answers
        serve(sys.stdin, out.write)
