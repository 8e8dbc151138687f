"""Formulas: parsing a text into a tree, evaluating it, and comparing two trees.

    text -> tokens -> grammar and atoms -> tree -> compare -> intervals, matrices, identity_testing -> evaluate -> value

`limits` bounds the work that all of this may take for one verdict.
"""
