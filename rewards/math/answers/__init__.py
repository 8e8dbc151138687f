"""Answers: normalizing and parsing them, and deciding whether two answers are the same.

text -> normalization -> parsing (plain_numbers, units, number_words) -> Answer -> equality (unfinished)
"""
