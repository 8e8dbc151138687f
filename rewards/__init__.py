"""Text in, number out. Imports nothing heavy (a reward model does, once it is loaded); of this project only
`volley.rollout.types` and `volley.rollout.errors`."""
