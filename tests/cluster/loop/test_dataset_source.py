import asyncio
import json
from pathlib import Path
from typing import Any

from volley.cluster.loop.dataset_source import DatasetSource
from volley.learner.losses.sft import Sft
from volley.learner.signals.batch import make_batch
from volley.learner.signals.demonstrations import Demonstrations
from volley.rollout.config import DataConfig
from volley.rollout.data.dataset_groups import DatasetGroups
from volley.rollout.data.prompts import PromptSet
from volley.rollout.data.rows import read_rows
from volley.rollout.types import ScoredGroup

ROWS = [{"prompt": f"{i}+1=", "completion": str(i + 1), "id": i} for i in range(20)]


def demonstrations(tmp_path: Path, tokenizer: Any) -> DatasetGroups:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    prompts = PromptSet(read_rows(str(path), {}, ("prompt", "completion")), tokenizer, DataConfig(str(path)), 3)
    return DatasetGroups(prompts, tokenizer, Demonstrations.read, 100, "drop")


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


def test_dataset_groups_have_the_current_version(tmp_path: Path, char_tokenizer: Any) -> None:
    (group,) = take(DatasetSource(demonstrations(tmp_path, char_tokenizer), lambda: 7), 1)
    assert group.first_version == 7
    batch = make_batch([group], Sft(), 7)
    assert batch.rows.num_trained == group.completions[0].num_sampled
    assert batch.rows.staleness.tolist() == [0]


def test_order_follows_the_prompts_and_survives_a_resume(tmp_path: Path, char_tokenizer: Any) -> None:
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
