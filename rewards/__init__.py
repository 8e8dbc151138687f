"""Text in, number out. Imports nothing heavy; of this project only `rollout.types` and `rollout.errors`."""
