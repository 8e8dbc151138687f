"""What samples: the engine protocol, vLLM in process and in worker processes, and the pool over several engines."""
