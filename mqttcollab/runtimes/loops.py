"""Answers that repeat themselves: a model caught in a loop writes the same tokens until it is stopped.

The rule: the answer ends where its last tokens are one cycle of at most `LONGEST_CYCLE` tokens, exactly and without a
gap, at least `LEAST_REPEATS` times over and at least `loop_tokens` (see `GenerationParameters`) tokens long. That a
model seldom leaves such a cycle, since each repetition makes the next one likelier, is shown by Xu et al., "Learning
to Break the Loop" (NeurIPS 2022); that hardly any written text has one, too (0.02% of the sentences of Wikitext-103
repeat the last one). vLLM's `repetition_detection` is the same rule without the least length, and off by default;
with it "ha ha ha", rows of a table and digits of 1/3 pass. How often it is right and wrong: `python -m
benchmarks.loops`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

LONGEST_CYCLE = 128
LEAST_REPEATS = 4


class LoopWatch:
    """Follows an answer token by token, at most some microseconds each.

    Args:
        least: how many tokens the repetitions fill before they count as a loop; 0: nothing counts.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._last: deque[Hashable] = deque(maxlen=LONGEST_CYCLE)  # the newest first
        self._runs: dict[int, int] = {}  # by length of a cycle: how many tokens in a row are those one cycle before

    def push(self, token: Hashable) -> bool:
        """Takes the next token (or piece of text); says whether the answer has come to a loop."""
        runs = self._runs
        self._runs = {n: runs.get(n, 0) + 1 for n, other in enumerate(self._last, 1) if other == token}
        self._last.appendleft(token)
        if not self._least:
            return False
        return any(n + run >= max(self._least, LEAST_REPEATS * n) for n, run in self._runs.items())
