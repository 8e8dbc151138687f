"""Text in, number out. Imports nothing heavy (a reward model does, once it is loaded); of this project only
`rollout.types` and `rollout.errors`."""
