"""The cheapest assignment under two-level costs, in plain Python: the definition of what the grouping kernels solve."""

from __future__ import annotations

from collections.abc import Sequence

Cost = tuple[float, float]

_FAR: Cost = (float("inf"), float("inf"))


def _plus(a: Cost, b: Cost) -> Cost:
    return a[0] + b[0], a[1] + b[1]


def _minus(a: Cost, b: Cost) -> Cost:
    return a[0] - b[0], a[1] - b[1]


def lexicographic_assignment(costs: Sequence[Sequence[Cost]]) -> list[int | None]:
    """Assigns as many rows to columns as there are of the fewer, at the least total cost.

    Costs are pairs that are added component by component and compared like tuples: the second decides only between
    totals whose first components are equal. Pairs so ordered are an ordered group, so the method of shortest
    augmenting paths (Jonker and Volgenant, 1987) stays exact; the first components must add up without rounding for
    ties to be seen, as multiples of 100 and float32 scores do in float64.

    Args:
        costs: `costs[row][column]`, finite pairs.

    Returns:
        For each row its column, or None for rows left over when there are more rows than columns.
    """
    rows, columns = len(costs), len(costs[0])
    if rows > columns:
        column_rows = lexicographic_assignment(list(zip(*costs, strict=True)))
        row_columns: list[int | None] = [None] * rows
        for column, row in enumerate(column_rows):
            if row is not None:
                row_columns[row] = column
        return row_columns
    u, v = [(0.0, 0.0)] * rows, [(0.0, 0.0)] * columns
    row_of: list[int | None] = [None] * columns
    for row in range(rows):
        _augment(costs, row, u, v, row_of)
    column_of: list[int | None] = [None] * rows
    for column, assigned in enumerate(row_of):
        if assigned is not None:
            column_of[assigned] = column
    return column_of


def _augment(costs: Sequence[Sequence[Cost]], row: int, u: list[Cost], v: list[Cost], row_of: list[int | None]) -> None:
    """Gives `row` a column, moving others along the cheapest path; keeps the reduced costs `c - u - v` >= 0."""
    shortest, before = [_FAR] * len(v), [row] * len(v)
    done: list[int] = []
    reach, i = (0.0, 0.0), row
    while True:
        for j in range(len(v)):
            through = _minus(_minus(_plus(reach, costs[i][j]), u[i]), v[j])
            if j not in done and through < shortest[j]:
                shortest[j], before[j] = through, i
        reach, j = min((shortest[j], j) for j in range(len(v)) if j not in done)
        done.append(j)
        taken_by = row_of[j]
        if taken_by is None:
            break
        i = taken_by
    u[row] = _plus(u[row], reach)
    for column in done[:-1]:
        slack = _minus(reach, shortest[column])
        owner = row_of[column]
        assert owner is not None
        u[owner], v[column] = _plus(u[owner], slack), _minus(v[column], slack)
    while True:  # hand the columns of the path on, from its end
        i = before[j]
        previous = row_of.index(i) if i in row_of else None
        row_of[j] = i
        if previous is None:
            return
        j = previous
