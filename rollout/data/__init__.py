"""Rows, prompts, chat templates, and the files of saved samples."""
