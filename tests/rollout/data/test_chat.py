import copy
from typing import Any

import pytest

from volley.rollout.data.chat import check_messages, completion_text, render_chat
from volley.rollout.errors import DataError, ModelError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}


def test_good_messages_pass_unchanged() -> None:
    messages = [{"role": "system", "content": ""}, USER, ASSISTANT, {**USER, "name": "Ada"}]
    assert check_messages(messages, "f:1") == messages


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (5, "the prompt is of type int"),
        ([], "an empty list of chat messages"),
        ([USER, "hi"], "chat message 2 is of type str"),
        ([{"role": "user"}], "chat message 1: its 'content' is missing or null"),
        ([{"role": "user", "content": None}], "its 'content' is missing or null"),
        ([{"content": "hi"}], "its 'role' is missing or null"),
        ([{"role": "", "content": "hi"}], "its 'role' is empty"),
        ([{"role": "user", "content": [{"type": "image"}]}], "its 'content' is of type list"),
        ([USER, ASSISTANT], "the last chat message is the assistant's"),
    ],
)
def test_errors_name_the_message(value: Any, problem: str) -> None:
    with pytest.raises(DataError, match=r"^f:1") as caught:
        check_messages(value, "f:1")
    assert problem in str(caught.value)


def test_rendered_chat_ends_where_the_assistant_starts(char_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert render_chat(tokenizer, [USER], "f:1") == "<user>hi<assistant>"


def test_a_template_can_reject_messages(char_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        DataError, match=r"f:1: the model's chat template rejects these messages .*\(roles must alternate\)"
    ):
        render_chat(tokenizer, [USER], "f:1")


def test_no_chat_template(char_tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="no chat template, but the prompt of f:1 is a chat"):
        render_chat(char_tokenizer, [USER], "f:1")


def test_completions() -> None:
    assert completion_text("done", "f:1") == "done"
    assert completion_text([ASSISTANT], "f:1") == "hello"
    for value, problem in ((3, "of type int"), ([USER], "of type list"), ([ASSISTANT] * 2, "of type list")):
        with pytest.raises(DataError, match=problem):
            completion_text(value, "f:1")
    with pytest.raises(DataError, match="f:1: the completion is empty"):
        completion_text("", "f:1")
