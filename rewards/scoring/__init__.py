"""The reward service: the weighted sum of rewards, its child processes, and the checks before a run."""
