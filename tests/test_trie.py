"""The radix tree of candidates: every candidate is a way through it, and no token stands in it twice."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from reason2decide.model.label_trie import Branch, branches

END = 1
contents = st.lists(st.lists(st.integers(3, 6), max_size=5).map(tuple), max_size=15, unique=True)


def ways(tree: Sequence[Branch], before: tuple[int, ...] = ()) -> dict[int, tuple[int, ...]]:
    """Each candidate's index and the tokens on its way."""
    found: dict[int, tuple[int, ...]] = {}
    for branch in tree:
        path = (*before, *branch.tokens)
        below = ways(branch.branches, path) if branch.branches else {branch.candidates[0]: path}
        assert set(below) == set(branch.candidates)
        found |= below
    return found


def tokens_in(tree: Sequence[Branch]) -> int:
    return sum(len(branch.tokens) + tokens_in(branch.branches) for branch in tree)


@given(contents)
def test_any_candidates(own: list[tuple[int, ...]]) -> None:
    candidates = [(*content, END) for content in own]
    tree = branches(candidates)
    assert ways(tree) == dict(enumerate(candidates))
    # A token for each distinct prefix: what several candidates share stands there once.
    assert tokens_in(tree) == len({path[:length] for path in candidates for length in range(1, len(path) + 1)})


@given(contents)
def test_branches_part_at_every_fork(own: list[tuple[int, ...]]) -> None:
    """A node with a single way out would be read in two forwards rather than one."""

    def check(tree: Sequence[Branch]) -> None:
        for branch in tree:
            assert len(branch.branches) != 1
            assert len({way.tokens[0] for way in branch.branches}) == len(branch.branches)
            check(branch.branches)

    check(branches([(*content, END) for content in own]))


def test_by_hand() -> None:
    """within 24, within 3, home: "within" is drawn together, "24" and "3" part."""
    assert branches([(5, 6, 7, END), (5, 6, 8, END), (9, END)]) == (
        Branch((5, 6), (0, 1), (Branch((7, END), (0,), ()), Branch((8, END), (1,), ()))),
        Branch((9, END), (2,), ()),
    )
