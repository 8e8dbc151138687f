"""Answers: units, words, spelling, and whether two answers are the same."""
