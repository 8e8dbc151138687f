"""From the rewards in a recipe to a pure function of one item: the built-in rewards, loading, and the weighted sum."""
