"""Chat messages: check them, and render them with the model's chat template.

The tokenizer, loaded by `transformers`, is an argument, so nothing heavy is imported here. Left out: messages with
images or sound, and tools.
"""

from collections.abc import Mapping
from typing import Any

from volley.rollout.errors import DataError, ModelError


def check_messages(value: Any, where: str) -> list[dict[str, Any]]:
    """`value` as the chat messages of a prompt, of which the last is not the assistant's. where: place, for errors.

    Raises `DataError` unless it is a list of `{role: text, content: text, ...}`.
    """
    if not isinstance(value, list):
        raise DataError(
            f"{where}: the prompt is of type {type(value).__name__}; it must be text, or a list of chat messages such "
            'as [{"role": "user", "content": "..."}].'
        )
    if not value:
        raise DataError(f"{where}: the prompt is an empty list of chat messages; give at least one, or remove the row.")
    messages = [_check_message(message, f"{where}: chat message {i + 1}") for i, message in enumerate(value)]
    if messages[-1]["role"] == "assistant":
        raise DataError(
            f"{where}: the last chat message is the assistant's, so there is nothing to answer; a prompt must end with "
            "the user's message (move the assistant's message to a separate column, 'completion')."
        )
    return messages


def _check_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is of type {type(message).__name__}; it must be an object with 'role' and 'content'.")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            found = f"of type {type(message[key]).__name__}" if message.get(key) is not None else "missing or null"
            raise DataError(f"{where}: its '{key}' is {found}; it must be text.")
    if not message["role"]:
        raise DataError(f"{where}: its 'role' is empty; write 'system', 'user' or 'assistant'.")
    return dict(message)


def render_chat(tokenizer: Any, messages: list[dict[str, Any]], where: str) -> str:
    """The text of `messages` up to the start of the assistant's response.

    It contains every special token of the template, so tokenise it without adding special tokens. Raises `ModelError`
    if the tokenizer has no chat template, `DataError` if the template rejects the messages.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ModelError(
            f"model: its tokenizer has no chat template, but the prompt of {where} is a chat; use a model that has one "
            "(its name often ends in Instruct), or write prompts as text and remove data.as_chat."
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program that comes with the model and may raise anything
        raise DataError(
            f"{where}: the model's chat template rejects these messages ({error}); change their roles or order."
        ) from None


def completion_text(value: Any, where: str) -> str:
    """A demonstration as text: the text itself, or the content of a single assistant message.

    Raises `DataError` for anything else and for empty text.
    """
    if isinstance(value, list) and len(value) == 1:
        message = _check_message(value[0], f"{where}: the completion's chat message")
        value = message["content"] if message["role"] == "assistant" else value
    if not isinstance(value, str):
        raise DataError(
            f"{where}: the completion is of type {type(value).__name__}; it must be text, or a list of one assistant "
            "message."
        )
    if not value:
        raise DataError(f"{where}: the completion is empty; give it text, or remove the row.")
    return value


def with_split_conversations(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Split the `chosen` and `rejected` of a row if they are whole conversations, as in many preference data sets.

    The shared messages become the `prompt`, the last messages the two responses. Other rows are returned unchanged.
    Raises `DataError` if the two conversations differ in more than their last message.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not (isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 1 and len(rejected) > 1):
        return row
    if chosen[:-1] != rejected[:-1]:
        raise DataError(
            f"{where}: chosen and rejected are conversations that differ in more than their last message, so they do "
            "not answer the same prompt; they must share all messages but the last."
        )
    return {**row, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
