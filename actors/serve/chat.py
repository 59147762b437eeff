"""Chats: messages become a prompt by the model's own template, in a sandbox.

The template is Jinja's, rendered as Hugging Face's transformers does: an immutable sandbox, the
same settings, functions and variables. A template comes with a model and a chat from anybody;
neither can reach Python. Control tokens are the template's to write: a message that holds one is
refused.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.files.json_files import read_json_object, regular_file
from hotcold.runtime.model.checkpoints.tokenizer_files import special_text
from hotcold.runtime.text.generation import TextCodec

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
# For the embedded model, which knows no turns: it goes on with what was said.
PLAIN = (
    "{% for message in messages %}{{ '\\n\\n' if not loop.first }}{{ message.content }}{% endfor %}"
)
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """A model's template.

    Raises:
        CheckpointError: it is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], framed: bool = False) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(
                f"the chat template is not one ({str(error)[:200]}); give another by "
                "--chat-template FILE"
            ) from error
        self._tokens, self._framed = dict(tokens), framed

    def ids(self, messages: Sequence[Mapping[str, Any]], text: TextCodec) -> list[int]:
        """Token ids of a chat, the assistant's turn begun.

        Raises:
            ConfigError: messages that the template refuses, or that hold control tokens.
        """
        for message in messages:
            known = text.tokenizer.control_tokens(message["content"])
            if known:
                raise ConfigError(
                    f"a message holds {known[0]!r}, which this model reads as a control token; "
                    "remove it"
                )
        values = {"messages": messages, "add_generation_prompt": True, **self._tokens}
        try:
            prompt = self._template.render(values)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ConfigError(
                f"the model's chat template refuses these messages ({str(error)[:200]})"
            ) from None
        return text.tokenizer.encode(prompt, special=not self._framed, framed=self._framed)


def find_template(folder: Path, is_embedded: bool, file: Path | None) -> ChatTemplate | None:
    """The template of a file, else of a model's folder; None where there is none.

    Raises:
        ConfigError: the file cannot be read.
        CheckpointError: what is there is no template.
    """
    tokens = {key: text for key in TOKENS if (text := special_text(folder, key)) is not None}
    if file is not None:
        try:
            return ChatTemplate(file.read_text(encoding="utf-8"), tokens)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--chat-template {file} cannot be read ({error}); give a file"
            ) from None
    if is_embedded:
        return ChatTemplate(PLAIN, tokens, framed=True)
    if regular_file(folder / TEMPLATE):
        return ChatTemplate((folder / TEMPLATE).read_text(encoding="utf-8"), tokens)
    named = None
    if regular_file(folder / CONFIG):
        named = read_json_object(folder / CONFIG).get("chat_template")
    if isinstance(named, list):  # several, by name
        found = {one.get("name"): one.get("template") for one in named if isinstance(one, dict)}
        named = found.get("default")
    return ChatTemplate(named, tokens) if isinstance(named, str) else None


def _tojson(value: Any, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **more)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
