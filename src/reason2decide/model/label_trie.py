"""The trie of candidate labels with its unbranched runs of tokens merged (a radix tree), without any engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reason2decide.method.prompts import Candidate


@dataclass(frozen=True)
class Branch:
    """A run of tokens from one fork to the next, or to the end of a candidate.

    `candidates` are the indices of the candidates on this branch; `branches` is empty where a candidate ends.
    """

    tokens: Candidate
    candidates: tuple[int, ...]
    branches: tuple[Branch, ...]


def branches(candidates: Sequence[Candidate]) -> tuple[Branch, ...]:
    """The branches at the root of the candidates' trie.

    Candidates are distinct and each ends in the end token, which is nowhere else; so none is a prefix of another.
    """

    def fork(group: Sequence[int], depth: int) -> tuple[Branch, ...]:
        by_token: dict[int, list[int]] = defaultdict(list)
        for candidate in group:
            by_token[candidates[candidate][depth]].append(candidate)
        return tuple(branch(tuple(indices), depth) for indices in by_token.values())

    def branch(group: tuple[int, ...], depth: int) -> Branch:
        paths = [candidates[candidate] for candidate in group]
        first, last = min(paths), max(paths)  # in lexical order: what these two share, all share
        if len(group) == 1:
            return Branch(first[depth:], group, ())
        end = depth
        while first[end] == last[end]:
            end += 1
        return Branch(first[depth:end], group, fork(group, end))

    return fork(range(len(candidates)), 0)
