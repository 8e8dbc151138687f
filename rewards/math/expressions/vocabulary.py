"""The fixed vocabulary of formulas. A word or command that is not listed here ends the parsing."""

import re

_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp floor ceil sqrt cbrt abs"
FUNCTIONS = frozenset(_FUNCTIONS.split())
FUNCTION_ALIASES = {"sen": "sin", "tg": "tan", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}
"""Other names of functions."""
_GREEK = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar
"""
GREEK = frozenset(_GREEK.split())
RELATIONS = {
    **{sign: sign for sign in ("=", "<", ">", "<=", ">=", "!=")},
    "==": "=",
    "\\le": "<=",
    "\\leq": "<=",
    "\\leqslant": "<=",
    "\\ge": ">=",
    "\\geq": ">=",
    "\\geqslant": ">=",
    "\\lt": "<",
    "\\gt": ">",
    "\\ne": "!=",
    "\\neq": "!=",
    "\\in": "in",
    "\\approx": "~",
    "\\simeq": "~",
}
"""The sign of a relation, by its token."""
SET_OPERATORS = {
    "\\cup": "union",
    "\\cap": "intersection",
    "U": "union",
    "\\setminus": "difference",
    "\\backslash": "difference",
}
MATRIX_ENVIRONMENTS = frozenset(["matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"])
SEPARATORS = frozenset([",", ";", "and", "or"])
"""Tokens between the members of a list."""
CLOSING_BRACKETS = {
    "(": (")", "]"),
    "[": ("]", ")"),
    "{": ("}",),
    "\\{": ("\\}",),
    "\\lbrace": ("\\rbrace",),
    "\\langle": ("\\rangle",),
    "\\lbrack": ("\\rbrack",),
}
"""The brackets that may close an opening one; mixed ones are half-open intervals."""
SET_BRACKETS = ("\\{", "\\lbrace")
FUNCTION_BRACKETS = {
    "\\lfloor": ("\\rfloor", "floor"),
    "\\lceil": ("\\rceil", "ceil"),
    "|": ("|", "abs"),
    "\\|": ("\\|", "abs"),
    "\\lvert": ("\\rvert", "abs"),
    "\\vert": ("\\vert", "abs"),
}
"""Brackets that are written instead of a function: the closing bracket, and the function."""
OPENING_BRACKETS = frozenset([*CLOSING_BRACKETS, *FUNCTION_BRACKETS])
ACCENTS = ("overline", "overrightarrow", "vec", "hat", "bar", "angle", "triangle", "widehat")
"""Commands that make one symbol of the letters that they mark."""
LEFT_SIDE_NAME = re.compile(
    r"(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:\{[\w ,+-]{1,12}\}|\w))?'{0,3}"
    r"|[fghpqrFGHPQTV](?:_(?:\{\w{1,8}\}|\w))?'{0,3} ?\([A-Za-z0-9, ]{1,12}\)|f ?\^ ?\{?-1\}? ?\([a-z]\)"
    r"|\([A-Za-z](?:_[0-9a-z])?(?:, ?[A-Za-z](?:_[0-9a-z])?){1,5}\)"
    r"|[A-Z]{2,4}|\|[A-Z]{2}\||(?:m ?)?\\(?:angle|triangle|overline|vec|hat|bar) ?\{? ?[A-Za-z]{1,3} ?\}?"
    r"|\\frac ?\{ ?d[a-z]? ?\} ?\{ ?d[a-z] ?\}"
)
"""What may name an answer on the left of "=".

A symbol, `f(x)`, a probability, a point, a part of a figure, or a derivative.
"""
WORDS = FUNCTIONS | set(FUNCTION_ALIASES) | {"and", "or", "degrees"}
"""Letters that form one token. Other letters are one symbol each."""
_COMMANDS = ("frac", "binom", "dbinom", "tbinom", "sqrt", "begin", "pi", "infty", "emptyset", "varnothing", "mathbb")
ATOM_COMMANDS = frozenset("\\" + word for word in [*_COMMANDS, *ACCENTS, *GREEK, *FUNCTIONS, *FUNCTION_ALIASES])
"""Commands that an atom can begin with."""
