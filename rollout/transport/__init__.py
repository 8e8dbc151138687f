"""Sending weights from learner to engines: transports for vLLM's weight-transfer API and the client of a push."""
