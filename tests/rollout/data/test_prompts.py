import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volley.rollout.config import DataConfig
from volley.rollout.data.prompts import PromptSet, epoch_order
from volley.rollout.data.rows import read_rows
from volley.rollout.errors import DataError, ModelError

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def prompts(tmp_path: Path, tokenizer: Any, rows: Sequence[dict[str, Any]], seed: int = 0, **data: Any) -> PromptSet:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSet(read_rows(str(path), {}, ("prompt",)), tokenizer, DataConfig(str(path), **data), seed)


@pytest.fixture
def chat_tokenizer(char_tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@given(st.integers(0, 2**70), st.integers(0, 1000), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_every_epoch_is_a_permutation(seed: int, epoch: int, num_rows: int) -> None:
    order = epoch_order(seed, epoch, num_rows)
    assert sorted(order) == list(range(num_rows))
    if num_rows > 20:
        assert list(order) != list(epoch_order(seed, epoch + 1, num_rows))
        assert list(order) != list(epoch_order(seed + 1, epoch, num_rows))


def test_the_order_never_changes() -> None:
    assert list(epoch_order(0, 0, 10)) == [7, 0, 9, 1, 5, 3, 4, 8, 2, 6]
    assert list(epoch_order(7, 3, 10)) == [1, 4, 0, 7, 5, 3, 8, 9, 2, 6]


def test_all_orders_are_about_as_likely() -> None:
    first = [epoch_order(seed, 0, 4)[0] for seed in range(2000)]
    assert all(400 < first.count(row) < 600 for row in range(4))


def test_prompt_at_is_a_pure_function(tmp_path: Path, char_tokenizer: Any) -> None:
    rows = [{"prompt": f"{i}+1=?", "answer": i + 1, "level": i % 3} for i in range(30)]
    one, other = (prompts(tmp_path, char_tokenizer, rows, seed=5) for _ in range(2))
    forward = [one.prompt_at(i) for i in range(90)]
    backward = [other.prompt_at(i) for i in reversed(range(90))][::-1]
    assert forward == backward
    assert [prompt.ordinal for prompt in forward] == list(range(90))
    for epoch in range(3):
        assert sorted(p.index for p in forward[30 * epoch : 30 * epoch + 30]) == list(range(30))
    assert [p.index for p in forward[:30]] != [p.index for p in forward[30:60]]
    assert [p.index for p in forward] != [
        prompts(tmp_path, char_tokenizer, rows, seed=6).prompt_at(i).index for i in range(90)
    ]


def test_a_prompt_is_its_row(tmp_path: Path, char_tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "1+1=?", "answer": 2, "level": 1, "tags": ["a"]},
        {"prompt": " two\n", "answer": " x "},
    ]
    first, second = prompts(tmp_path, char_tokenizer, rows).in_order()
    assert (first.ordinal, first.index, first.text, first.answer) == (0, 0, "1+1=?", "2")
    assert char_tokenizer.decode(first.token_ids) == "1+1=?"
    assert first.row == {"level": 1, "tags": ["a"]}
    assert (second.ordinal, second.index, second.text, second.answer) == (1, 1, " two\n", " x ")
    assert second.row == {}


def test_in_order_over_many_batches(tmp_path: Path, char_tokenizer: Any) -> None:
    found = list(prompts(tmp_path, char_tokenizer, [{"prompt": str(i)} for i in range(2500)]).in_order())
    assert [p.text for p in found] == [str(i) for i in range(2500)]
    assert [p.ordinal for p in found] == [p.index for p in found] == list(range(2500))


def test_special_tokens_are_added_to_text_and_not_to_chats(tmp_path: Path, chat_tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    chat_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", chat_tokenizer.eos_token_id)]
    )
    rows: list[dict[str, Any]] = [{"prompt": "ab"}, {"prompt": [{"role": "user", "content": "ab"}]}]
    raw, chat = prompts(tmp_path, chat_tokenizer, rows).in_order()
    assert raw.token_ids.tolist() == [chat_tokenizer.eos_token_id, *chat_tokenizer.convert_tokens_to_ids(["a", "b"])]
    assert raw.text == "ab"
    assert chat.text == "<user>ab\n<assistant>"
    assert chat_tokenizer.decode(chat.token_ids) == chat.text


def test_templates(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [{"prompt": 'sum {"a": 1}'}]
    (prompt,) = prompts(tmp_path, chat_tokenizer, rows, prompt_template="Q: {prompt} {x}\nA:").in_order()
    assert prompt.text == 'Q: sum {"a": 1} {x}\nA:'
    (prompt,) = prompts(tmp_path, chat_tokenizer, rows, as_chat=True, system="be brief").in_order()
    assert prompt.text == '<system>be brief\n<user>sum {"a": 1}\n<assistant>'


def test_system_message_of_the_data_wins(tmp_path: Path, chat_tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "x"}]
    rows = [{"prompt": chat}, {"prompt": chat[1:]}]
    own, ours = prompts(tmp_path, chat_tokenizer, rows, as_chat=True, system="s").in_order()
    assert own.text.startswith("<system>own\n<user>")
    assert ours.text.startswith("<system>s\n<user>")
    assert list(own.messages) == chat
    assert [message["content"] for message in ours.messages] == ["s", "x"]


def test_text_comes_from_no_chat(tmp_path: Path, chat_tokenizer: Any) -> None:
    (prompt,) = prompts(tmp_path, chat_tokenizer, [{"prompt": "x"}]).in_order()
    assert prompt.messages == ()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("6 * 3 = 18\n#### 18", "18"), ("#### 1 #### 1,234 \n", "1,234"), ("####", "")],
)
def test_answer_after_takes_what_follows_the_last(
    tmp_path: Path, char_tokenizer: Any, answer: str, expected: str
) -> None:
    (prompt,) = prompts(tmp_path, char_tokenizer, [{"prompt": "p", "answer": answer}], answer_after="####").in_order()
    assert prompt.answer == expected


def test_long_prompts_are_dropped_and_counted(tmp_path: Path, char_tokenizer: Any) -> None:
    rows = [{"prompt": "x" * length} for length in (3, 9, 5, 6, 4)]
    kept = prompts(tmp_path, char_tokenizer, rows, max_prompt_tokens=5)
    assert kept.num_dropped_long == 2
    assert [p.index for p in kept.in_order()] == [0, 2, 4]
    assert sorted(kept.prompt_at(i).index for i in range(3)) == [0, 2, 4]
    fewer = kept.without({2})
    assert (len(fewer), fewer.num_dropped_long, len(kept)) == (2, 3, 3)
    with pytest.raises(DataError, match=r"all 5 rows are too long \(data.max_prompt_tokens is 5"):
        kept.without({0, 2, 4})


def test_long_prompts_are_refused(tmp_path: Path, char_tokenizer: Any) -> None:
    rows = [{"prompt": "xx"}, {"prompt": "x" * 9}]
    with pytest.raises(DataError, match=r"rows.jsonl:2: the prompt has 9 tokens, but data.max_prompt_tokens is 5;"):
        prompts(tmp_path, char_tokenizer, rows, max_prompt_tokens=5, on_long="refuse")


def test_fingerprint_changes_with_the_prompts(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [{"prompt": "x" * length} for length in (3, 9, 5)]
    first = prompts(tmp_path, chat_tokenizer, rows)
    assert prompts(tmp_path, chat_tokenizer, rows, seed=9).fingerprint == first.fingerprint
    others = [
        prompts(tmp_path, chat_tokenizer, rows, max_prompt_tokens=8),
        prompts(tmp_path, chat_tokenizer, rows, as_chat=True),
        prompts(tmp_path, chat_tokenizer, rows, prompt_template="{prompt}!"),
        prompts(tmp_path, chat_tokenizer, rows[:2]),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize(
    ("row", "data", "problem"),
    [
        ({"prompt": " \n"}, {}, "the prompt is empty"),
        ({"prompt": 12}, {}, "the prompt is of type int"),
        ({"prompt": [{"role": "user"}]}, {}, "its 'content' is missing"),
        ({"prompt": "p", "answer": "18"}, {"answer_after": "####"}, "the answer does not contain '####'"),
        ({"prompt": [{"role": "user", "content": "x"}]}, {"prompt_template": "{prompt}"}, "the prompt is a chat"),
    ],
)
def test_errors_name_the_row(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any], data: dict[str, Any], problem: str
) -> None:
    good = {"prompt": "p", "answer": "#### 1"} if "answer_after" in data else {"prompt": "p"}
    with pytest.raises(DataError, match=r"rows.jsonl:2: ") as caught:
        prompts(tmp_path, chat_tokenizer, [good, row], **data)
    assert problem in str(caught.value)


def test_chat_needs_a_template(tmp_path: Path, char_tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=r"rows.jsonl:1 is a chat"):
        prompts(tmp_path, char_tokenizer, [{"prompt": "p"}], as_chat=True)


def test_a_prompt_without_tokens(tmp_path: Path, char_tokenizer: Any) -> None:
    from tokenizers.normalizers import Replace

    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.backend_tokenizer.normalizer = Replace("x", "")
    with pytest.raises(DataError, match=r"rows.jsonl:1: the prompt has no tokens"):
        prompts(tmp_path, tokenizer, [{"prompt": "x"}])


def test_gsm8k_answers(gsm8k_each: Path, char_tokenizer: Any) -> None:
    for name in ("train", "test"):
        file = str(gsm8k_each / f"{name}.jsonl")
        data = DataConfig(file, columns={"prompt": "question"}, answer_after="####")
        found = PromptSet(read_rows(file, data.columns, ("prompt", "answer")), char_tokenizer, data, 0)
        assert found.num_dropped_long == 0
        answers = [prompt.answer for prompt in found.in_order()]
        assert all(re.fullmatch(r"-?[\d,]+(\.\d+)?", answer) for answer in answers)
        assert any("," in answer for answer in answers)
