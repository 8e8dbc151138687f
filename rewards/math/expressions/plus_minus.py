"""Plus-minus signs: a formula with them has two values, one for all upper signs and one for all lower signs."""

from volley.rewards.math.expressions.tree import Node

_SIGNS = {"plus-minus": (1, -1), "minus-plus": (-1, 1)}


def plus_minus_values(node: Node) -> tuple[Node, ...]:
    """Return the two formulas that a plus-minus formula means, or the formula itself if it has no such sign."""
    if not _has_plus_minus(node):
        return (node,)
    return (_replace_signs(node, 0), _replace_signs(node, 1))


def _has_plus_minus(node: Node) -> bool:
    return node.op in _SIGNS or any(map(_has_plus_minus, node.parts))


def _replace_signs(node: Node, which: int) -> Node:
    """Replace every plus-minus by its upper sign (`which` 0) or its lower sign (`which` 1)."""
    parts = tuple(_replace_signs(part, which) for part in node.parts)
    if node.op in _SIGNS:
        return parts[0] if _SIGNS[node.op][which] > 0 else Node("minus", parts)
    return node._replace(parts=parts)
