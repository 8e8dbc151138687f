import asyncio
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from volley.cluster.loop.dataset_source import DatasetGroups, DatasetSource
from volley.learner.losses.sft import Sft
from volley.learner.signals.batch import make_batch
from volley.rollout.config import DataConfig
from volley.rollout.data.prompts import PromptSet
from volley.rollout.data.rows import read_rows
from volley.rollout.errors import DataError, ModelError
from volley.rollout.types import ScoredGroup

ROWS = [{"prompt": f"{i}+1=", "completion": str(i + 1), "id": i} for i in range(20)]


def demonstrations(
    tmp_path: Path, tokenizer: Any, rows: Sequence[dict[str, Any]] = ROWS, max_length: int = 100, on_long: str = "drop"
) -> DatasetGroups:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = PromptSet(read_rows(str(path), {}, ("prompt", "completion")), tokenizer, DataConfig(str(path)), 3)
    return DatasetGroups(prompts, tokenizer, "demonstrations", max_length, on_long)


def take(source: DatasetSource, *numbers: int) -> list[ScoredGroup]:
    async def run() -> list[ScoredGroup]:
        groups = []
        async with asyncio.TaskGroup() as tasks:
            source.start(tasks)
            for number in numbers:
                groups += await source.take(number)
                await source.release(number)
            source.stop()
        return groups

    return asyncio.run(run())


def test_a_demonstration_is_a_scored_group(tmp_path: Path, char_tokenizer: Any) -> None:
    (group,) = take(DatasetSource(demonstrations(tmp_path, char_tokenizer, ROWS[:1]), lambda: 7), 1)
    (completion,), (score,) = group.completions, group.scores
    assert (group.prompt.text, completion.text, group.prompt.row["id"]) == ("0+1=", "1", 0)
    assert completion.token_ids.tolist() == [*char_tokenizer.convert_tokens_to_ids(["1"]), char_tokenizer.eos_token_id]
    assert completion.logprobs.tolist() == [0.0, 0.0]
    assert (completion.finish_reason, completion.first_version, completion.last_version) == ("data", 7, 7)
    assert (score.reward, dict(score.terms), score.unscorable) == (1.0, {}, "")
    batch = make_batch([group], Sft(), 7)
    assert batch.num_completion_tokens == 2
    assert batch.rows[0].staleness == 0


def test_order_is_that_of_the_prompts_and_survives_a_resume(tmp_path: Path, char_tokenizer: Any) -> None:
    demos = demonstrations(tmp_path, char_tokenizer)
    whole = take(DatasetSource(demos, lambda: 0), 8, 8, 8, 8, 8)
    assert [group.prompt.ordinal for group in whole] == list(range(40))
    assert sorted(group.prompt.index for group in whole[:20]) == list(range(20))
    assert [group.prompt.index for group in whole[:20]] != [group.prompt.index for group in whole[20:]]

    first, second = DatasetSource(demos, lambda: 0), DatasetSource(demos, lambda: 0)
    before = take(first, 8, 8)
    second.restore(json.loads(json.dumps(first.state())))
    assert before + take(second, 8, 8, 8) == whole


def test_accounting_adds_up(tmp_path: Path, char_tokenizer: Any) -> None:
    source = DatasetSource(demonstrations(tmp_path, char_tokenizer), lambda: 0)
    assert set(source.accounting().values()) == {0}
    take(source, 8, 4)
    counts = source.accounting()
    assert counts.pop("issued") == sum(counts.values()) == 12


def test_long_rows_are_dropped_and_counted(tmp_path: Path, char_tokenizer: Any) -> None:
    rows = [{"prompt": "ab", "completion": "x" * length} for length in (3, 4, 9, 2)]
    demos = demonstrations(tmp_path, char_tokenizer, rows, max_length=6)  # 2 + 3 + the end token
    assert (len(demos), demos.num_dropped_long) == (2, 2)
    assert {group.prompt.index for group in take(DatasetSource(demos, lambda: 0), 6)} == {0, 3}
    assert demos.fingerprint != demonstrations(tmp_path, char_tokenizer, rows).fingerprint


def test_long_rows_are_refused(tmp_path: Path, char_tokenizer: Any) -> None:
    rows = [{"prompt": "ab", "completion": "x" * length} for length in (3, 4)]
    with pytest.raises(DataError, match=r"rows.jsonl:2: prompt and completion have 7 tokens, but the model takes 6;"):
        demonstrations(tmp_path, char_tokenizer, rows, max_length=6, on_long="refuse")
    with pytest.raises(DataError, match="all of its 2 rows are too long"):
        demonstrations(tmp_path, char_tokenizer, rows, max_length=3)


def test_an_end_token_that_is_there_is_not_doubled(tmp_path: Path, char_tokenizer: Any) -> None:
    rows = [{"prompt": "ab", "completion": [{"role": "assistant", "content": "x<eos>"}]}]
    (group,) = take(DatasetSource(demonstrations(tmp_path, char_tokenizer, rows), lambda: 0), 1)
    assert group.completions[0].token_ids[1:].tolist() == [char_tokenizer.eos_token_id]


def test_bad_demonstrations(tmp_path: Path, char_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:2: the completion is empty"):
        demonstrations(tmp_path, char_tokenizer, [ROWS[0], {"prompt": "p", "completion": ""}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: 'completion' is null"):
        demonstrations(tmp_path, char_tokenizer, [{"prompt": "p", "completion": None}])
    endless = copy.deepcopy(char_tokenizer)
    endless.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        demonstrations(tmp_path, endless)
