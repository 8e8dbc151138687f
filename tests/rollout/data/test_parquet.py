import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rollout.completions import completions, texts, token_ids
from volley.rollout.data.parquet import EPISODE_COLUMNS, SCHEMA, from_batch, read_groups, to_batch, write_groups
from volley.rollout.errors import DataError
from volley.rollout.types import Completion, Prompt, Score, ScoredGroup, as_token_ids

doubles = st.floats(allow_nan=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def groups(draw: st.DrawFn) -> ScoredGroup:
    prompt = Prompt(
        draw(st.integers(0, 2**62)),
        draw(st.integers(0, 2**40)),
        draw(texts),
        draw(token_ids),
        draw(texts),
        draw(st.dictionaries(texts, json_values, max_size=3)),
    )
    members = draw(st.lists(completions(), min_size=1, max_size=4))
    scores = [
        Score(draw(doubles), draw(st.dictionaries(texts, doubles, max_size=3)), draw(texts), draw(doubles), draw(texts))
        for _ in members
    ]
    return ScoredGroup(prompt, tuple(members), tuple(scores))


def exact(value: Any) -> Any:
    """A form in which NaN equals NaN, and 0.0 does not equal -0.0 or 0."""
    return repr(value)


@given(st.lists(groups(), max_size=4), st.integers(0, 2**40))
@settings(max_examples=150, deadline=None)
def test_round_trip_is_exact(some: list[ScoredGroup], step: int) -> None:
    batch = to_batch(some, step)
    assert batch.num_rows == sum(len(group.completions) for group in some)
    assert exact(from_batch(batch)) == exact(some)
    assert set(batch.column("step").to_pylist()) <= {step}


def group(ordinal: int, rewards: tuple[float, ...] = (1.0, math.nan)) -> ScoredGroup:
    completion = Completion.single((5, 1), (-0.5, -0.25), "hi", "length", 3, 4)
    prompt = Prompt(ordinal, 9, "say hi", as_token_ids((7, 8, 9)), "hi", {"level": 2})
    scores = tuple(Score(reward, {"math": reward}, "" if reward == reward else "it hung") for reward in rewards)
    return ScoredGroup(prompt, (completion,) * len(rewards), scores)


def test_a_file_holds_the_groups_flat(tmp_path: Path) -> None:
    path = tmp_path / "step-000012.parquet"
    write_groups(path, [group(0), group(1)], 12)
    assert exact(read_groups(path)) == exact([group(0), group(1)])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    table = pa.parquet.read_table(path)
    assert table.schema.equals(SCHEMA)
    row = table.to_pylist()[2]
    assert (row["step"], row["ordinal"], row["sample"], row["prompt"], row["completion"]) == (12, 1, 0, "say hi", "hi")
    assert (row["row"], row["terms"], row["finish_reason"]) == ('{"level": 2}', [("math", 1.0)], "length")


@pytest.mark.parametrize("extracted", ["18", "", None])
def test_unreported_and_missing_answers_differ(tmp_path: Path, extracted: str | None) -> None:
    base = group(0, (0.0,))
    scored = ScoredGroup(base.prompt, base.completions, (Score(0.0, {}, "", 0.0, extracted),))
    write_groups(tmp_path / "a.parquet", [scored], 1)
    (score,) = read_groups(tmp_path / "a.parquet")[0].scores
    assert (score.extracted, score.is_answerless) == (extracted, extracted == "")


def test_files_of_earlier_versions_are_read_as_single_turns(tmp_path: Path) -> None:
    """Files of earlier versions."""
    path = tmp_path / "old.parquet"
    write_groups(path, [group(0), group(1)], 12)
    pa.parquet.write_table(pa.parquet.read_table(path).drop_columns(list(EPISODE_COLUMNS)), path)
    assert exact(read_groups(path)) == exact([group(0), group(1)])


def test_a_slice_and_a_table_of_several_chunks_are_read(tmp_path: Path) -> None:
    batch = to_batch([group(0), group(1), group(2)], 12)
    assert exact(from_batch(batch.slice(2))) == exact([group(1), group(2)])
    chunks = pa.Table.from_batches([batch.slice(0, 3), batch.slice(3)])
    assert exact(from_batch(chunks)) == exact([group(0), group(1), group(2)])


def test_no_groups(tmp_path: Path) -> None:
    write_groups(tmp_path / "a.parquet", [], 1)
    assert read_groups(tmp_path / "a.parquet") == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_groups(path, [group(0)], 1)
    bad = group(1)
    with pytest.raises(TypeError):
        write_groups(
            path,
            [ScoredGroup(Prompt(1, 1, "p", as_token_ids((1,)), "", {"x": object()}), bad.completions, bad.scores)],
            2,
        )
    assert len(read_groups(path)) == 1


def test_lone_surrogates_of_a_reward_are_replaced(tmp_path: Path) -> None:
    base = group(0, (1.0,))
    odd = ScoredGroup(base.prompt, base.completions, (Score(1.0, {}, "bad \ud83d", 1.0, "\udc00"),))
    write_groups(tmp_path / "a.parquet", [odd], 1)
    (score,) = read_groups(tmp_path / "a.parquet")[0].scores
    assert (score.unscorable, score.extracted) == ("bad ?", "?")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a readable file of samples"):
        read_groups(tmp_path / "none.parquet")
    whole = tmp_path / "whole.parquet"
    write_groups(whole, [group(0)], 1)
    (tmp_path / "torn.parquet").write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(DataError, match="is not a readable file of samples"):
        read_groups(tmp_path / "torn.parquet")
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="it has no column 'step'"):
        read_groups(tmp_path / "other.parquet")
