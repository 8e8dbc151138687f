import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from volley.learner.signals.demonstrations import Demonstrations
from volley.rollout.config import DataConfig
from volley.rollout.data.dataset_groups import DatasetGroups
from volley.rollout.data.prompts import PromptSet
from volley.rollout.data.rows import read_rows
from volley.rollout.errors import DataError, ModelError

ROWS = [{"prompt": f"{i}+1=", "completion": str(i + 1), "id": i} for i in range(20)]


def demonstrations(
    tmp_path: Path, tokenizer: Any, rows: Sequence[dict[str, Any]] = ROWS, max_length: int = 100, on_long: str = "drop"
) -> DatasetGroups:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = PromptSet(read_rows(str(path), {}, ("prompt", "completion")), tokenizer, DataConfig(str(path)), 3)
    return DatasetGroups(prompts, tokenizer, Demonstrations.read, max_length, on_long)


def test_a_demonstration_is_a_scored_group(tmp_path: Path, char_tokenizer: Any) -> None:
    group = demonstrations(tmp_path, char_tokenizer, ROWS[:1]).group_at(0, 7)
    (completion,), (score,) = group.completions, group.scores
    assert (group.prompt.text, completion.text, group.prompt.row["id"]) == ("0+1=", "1", 0)
    assert completion.token_ids.tolist() == [*char_tokenizer.convert_tokens_to_ids(["1"]), char_tokenizer.eos_token_id]
    assert completion.logprobs.tolist() == [0.0, 0.0]
    assert (completion.finish_reason, completion.first_version, completion.last_version) == ("data", 7, 7)
    assert (score.reward, dict(score.terms), score.unscorable) == (1.0, {}, "")


def test_long_rows_are_dropped_and_counted(tmp_path: Path, char_tokenizer: Any) -> None:
    rows = [{"prompt": "ab", "completion": "x" * length} for length in (3, 4, 9, 2)]
    demos = demonstrations(tmp_path, char_tokenizer, rows, max_length=6)  # 2 + 3 + the end token
    assert (len(demos), demos.num_dropped_long) == (2, 2)
    assert {demos.group_at(ordinal, 0).prompt.index for ordinal in range(6)} == {0, 3}
    assert demos.fingerprint != demonstrations(tmp_path, char_tokenizer, rows).fingerprint


def test_long_rows_are_refused(tmp_path: Path, char_tokenizer: Any) -> None:
    rows = [{"prompt": "ab", "completion": "x" * length} for length in (3, 4)]
    with pytest.raises(DataError, match=r"rows.jsonl:2: prompt and completion have 7 tokens, but the model takes 6;"):
        demonstrations(tmp_path, char_tokenizer, rows, max_length=6, on_long="refuse")
    with pytest.raises(DataError, match="all 2 rows are too long"):
        demonstrations(tmp_path, char_tokenizer, rows, max_length=3)


def test_an_existing_end_token_is_not_added_again(tmp_path: Path, char_tokenizer: Any) -> None:
    rows = [{"prompt": "ab", "completion": [{"role": "assistant", "content": "x<eos>"}]}]
    group = demonstrations(tmp_path, char_tokenizer, rows).group_at(0, 0)
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
