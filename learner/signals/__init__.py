"""How scored groups become rows and the signal that a loss reads."""
