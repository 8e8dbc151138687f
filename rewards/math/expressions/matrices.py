"""Sums and products of matrices, folded into one matrix."""

from collections.abc import Iterable
from functools import reduce

from volley.rewards.math.expressions.tree import Node, plus, times

MAX_ENTRIES = 40
"""Entries of a product of two matrices. Larger products are not computed."""


def combine_matrices(node: Node) -> Node:
    """Return a sum or product of matrices, or of a number and a matrix, as one matrix. Other formulas are unchanged."""
    if node.op not in ("sum", "product", "minus"):
        return node
    if node.op == "product" and not _has_matrix(node.parts[0]):
        matrix = combine_matrices(node.parts[1])
        if matrix.op == "matrix":
            return _matrix([[times(node.parts[0], entry) for entry in row.parts] for row in matrix.parts])
    operands = [[row.parts for row in part.parts] for part in map(combine_matrices, node.parts) if part.op == "matrix"]
    if len(operands) != len(node.parts):
        return node
    if node.op == "minus":
        return _matrix([[Node("minus", (entry,)) for entry in row] for row in operands[0]])
    left, right = operands
    if node.op == "sum" and [len(row) for row in left] == [len(row) for row in right]:
        return _matrix([map(plus, *rows) for rows in zip(left, right, strict=True)])
    if node.op == "product" and len(left[0]) == len(right) and len(left) * len(right[0]) <= MAX_ENTRIES:
        columns = list(zip(*right, strict=True))
        return _matrix([[reduce(plus, map(times, row, column)) for column in columns] for row in left])
    return node


def _matrix(rows: Iterable[Iterable[Node]]) -> Node:
    return Node("matrix", tuple(Node("row", tuple(row)) for row in rows))


def _has_matrix(node: Node) -> bool:
    return node.op == "matrix" or any(map(_has_matrix, node.parts))
