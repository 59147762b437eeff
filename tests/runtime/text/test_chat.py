"""Chat templates: transformers' text, users' control tokens kept as text, hostile ones ended."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.models import TinyLlama, write_llama
from transformers.utils.chat_template_utils import render_jinja_template

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.text import chat
from hotcold.runtime.text.chat import ChatTemplate
from hotcold.runtime.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<s>system\nBe kind.</s>\n' }}{% endif %}{{ '<s>' + message.role + '\n' }}"
    "{{ message['content'] | trim }}{{ eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "Hi  there "},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Say </s> and {{ 7 * 7 }}"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_llama(tmp_path_factory.mktemp("chat"), TinyLlama())
    (made / "chat_template.jinja").write_text(CHATML)
    return made


@pytest.fixture(scope="module")
def template(folder: Path) -> Iterator[ChatTemplate]:
    made = ChatTemplate.of(folder)
    yield made
    made.close()


@pytest.mark.parametrize("more", [True, False])
def test_the_text_is_transformers(template: ChatTemplate, more: bool) -> None:
    expected, _ = render_jinja_template(
        [TALK], chat_template=CHATML, add_generation_prompt=more, eos_token="</s>"
    )
    assert template.render(TALK, add_generation_prompt=more) == expected[0]


def test_control_tokens_of_users_are_text(template: ChatTemplate, folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    ids = template.encode(tokenizer, TALK)
    assert ids.count(1) == 5 and ids.count(2) == 4  # the template's own, and no more
    assert "Say </s> and {{ 7 * 7 }}" in tokenizer.decode(ids)


def test_one_of_a_list_in_the_tokenizers_config(tmp_path: Path) -> None:
    entries = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    assert ChatTemplate.of(tmp_path).render(TALK) == "yes"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no chat template"):
        ChatTemplate.of(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{% for", "cannot be used"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|cannot be used"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "cannot be used"),
        ("{{ 'x' * 4000000000 }}", "time or memory"),
        (
            "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(90) %}"
            "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
            "time or memory",
        ),
    ],
)
def test_a_hostile_template_is_one_line(text: str, match: str) -> None:
    hostile = ChatTemplate(text, {}, "here")
    with pytest.raises(CheckpointError, match=match) as error:
        hostile.render(TALK)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    hostile.close()


def test_one_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "TIMEOUT_S", 3.0)
    loops = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
    hostile = ChatTemplate(loops, {}, "here")
    with pytest.raises(CheckpointError, match="time or memory"):
        hostile.render(TALK)
    hostile.close()


@pytest.mark.parametrize(
    "messages", [[], "hello", [{"content": "x"}], [{"role": 1}], [{"role": "user", "content": {1}}]]
)
def test_messages_that_are_none(template: ChatTemplate, messages: Any) -> None:
    with pytest.raises(ConfigError, match="message"):
        template.render(messages)


def test_what_a_template_refuses_is_said() -> None:
    refusing = ChatTemplate("{{ raise_exception('roles must alternate') }}", {}, "here")
    with pytest.raises(ConfigError, match="roles must alternate"):
        refusing.render(TALK)
    refusing.close()
