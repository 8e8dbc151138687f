"""Sampling: the engine protocol, vLLM in this process and in workers, and the pool of several engines."""
