"""The list of rewards that score whole groups."""

from volley.rewards.rubric.registry import BUILT_IN, GROUP_TERMS
from volley.rewards.scoring.group_terms import CLASSES


def test_the_registry_names_every_group_term() -> None:
    assert set(CLASSES) == set(GROUP_TERMS)
    assert not set(GROUP_TERMS) & set(BUILT_IN)
