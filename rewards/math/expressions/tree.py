"""A formula as a tree of nodes. `grammar` builds trees, `evaluate` gives them values, `compare` compares them."""

from fractions import Fraction
from typing import NamedTuple


class Node(NamedTuple):
    """A formula or a part of one."""

    op: str
    """The kind of node, such as `number`, `symbol`, `sum`, `function`, `list`, `tuple` or `relation`."""
    parts: tuple["Node", ...] = ()
    """The operands."""
    number: Fraction = Fraction(0)
    """The value of a `number`."""
    name: str = ""
    """Depends on the kind:

    - symbol, constant, function, set of numbers: its name
    - relation: its signs, separated by spaces
    - tuple: its two brackets
    - number: the number of decimal places that it is written with, or ""
    - list: its separator, `,`, `and` or `or`
    """


def number(value: int | Fraction) -> Node:
    return Node("number", number=Fraction(value))


def plus(left: Node, right: Node) -> Node:
    return Node("sum", (left, right))


def minus(left: Node, right: Node) -> Node:
    return Node("sum", (left, Node("minus", (right,))))


def times(left: Node, right: Node) -> Node:
    return Node("product", (left, right))


def symbols(node: Node) -> frozenset[str]:
    """Return the names of the symbols in a formula."""
    if node.op == "symbol":
        return frozenset([node.name])
    return frozenset().union(*map(symbols, node.parts)) if node.parts else frozenset()


def is_minus_infinity(node: Node) -> bool:
    return node.op == "minus" and node.parts[0].op == "infinity"
