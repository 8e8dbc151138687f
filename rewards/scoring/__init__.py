"""The service that scores completions: in processes that can be killed, with time and memory limits."""
