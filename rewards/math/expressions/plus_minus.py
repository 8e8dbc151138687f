"""What plus-minus stands for: all upper signs of a formula, or all lower ones."""

from volley.rewards.math.expressions.formula import Node

_SIGNED = {"plus-minus": (1, -1), "minus-plus": (-1, 1)}


def plus_minus_values(node: Node) -> tuple[Node, ...]:
    """The two values of a formula with a plus-minus; of any other, the formula itself."""
    if not _has_signs(node):
        return (node,)
    return (_with_sign(node, 0), _with_sign(node, 1))


def _has_signs(node: Node) -> bool:
    return node.op in _SIGNED or any(map(_has_signs, node.parts))


def _with_sign(node: Node, which: int) -> Node:
    parts = tuple(_with_sign(part, which) for part in node.parts)
    if node.op in _SIGNED:
        return parts[0] if _SIGNED[node.op][which] > 0 else Node("minus", parts)
    return node._replace(parts=parts)
