"""Best-fit decreasing: which examples share a row."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each index once, the sum of a row's lengths at most `capacity`.

    Longest first, each into the fullest row that has room for it; ties go by index, so that the result depends on nothing else.
    Needs at most 11/9 of the fewest possible rows, and a few (Johnson et al. 1974).
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        assert length <= capacity, f"example of {length} tokens in rows of {capacity}"
        place = bisect_left(room, (length, -1))
        if place == len(room):
            rows.append([])
            left, row = capacity, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        insort(room, (left - length, row))
    return rows
