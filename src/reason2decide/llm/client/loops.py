"""Notice when a model repeats itself: small models at temperature 0 often do, until their tokens are used up."""

from __future__ import annotations

REPEATS = 4  # ours: a list may say the same twice, a refrain three times
LEAST_CHARACTERS = 100  # ours: shorter repetitions, such as a row of dashes, end by themselves
WINDOW = 1600  # ours: characters at the end that are searched; four times the longest repeated passage found


def ends_in_a_loop(text: str) -> bool:
    """Whether a text ends in one passage written `REPEATS` times or more, over at least `LEAST_CHARACTERS` (ours).

    >>> ends_in_a_loop("It is a fever. " * 8)
    True

    Time is linear in `WINDOW`: the Z function of the reversed end (Gusfield 1997) gives for each length how far the end
    repeats itself at that distance.
    """
    end = text[-WINDOW:][::-1]
    n = len(end)
    z, left, right = [0] * n, 0, 0
    for i in range(1, n):
        if i < right:
            z[i] = min(right - i, z[i - left])
        while i + z[i] < n and end[z[i]] == end[i + z[i]]:
            z[i] += 1
        if i + z[i] > right:
            left, right = i, i + z[i]
        if z[i] + i >= max(REPEATS * i, LEAST_CHARACTERS):
            return True
    return False
