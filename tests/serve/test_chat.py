"""Which template a server takes, and that chats become prompts as transformers makes them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hotcold.actors.serve.chat import find_template
from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.text.generation import TextCodec

CHATML = """{%- if not messages %}{{ raise_exception('no messages') }}{% endif %}
{%- for message in messages %}
{% if message.role == 'system' and not loop.first %}{{ raise_exception('too late') }}{% endif %}
{{- bos_token if loop.first }}[{{ message.role }}] {{ message.content | trim }}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Tell stories."},
    {"role": "user", "content": " Once upon a time "},
]


@pytest.fixture(scope="module")
def text() -> TextCodec:
    bundle = resolve_model(None)
    return TextCodec(bundle.path, bundle.spec)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model's tokenizer alone."""
    source = resolve_model(None).path
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, tmp_path)
    return tmp_path


def named(folder: Path, template: Any) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


def test_a_template_gives_the_ids_of_transformers(folder: Path, text: TextCodec) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(named(folder, CHATML))
    given = theirs.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True)
    expected = given["input_ids"] if hasattr(given, "keys") else given
    template = find_template(folder, False, None)
    assert template is not None
    ids = template.encode(text.tokenizer, CHAT)
    assert ids == list(expected)
    assert ids[0] in text.tokenizer.encode("")[:1] and ids[1] != ids[0]  # begun once


@pytest.mark.parametrize("where", ["config", "named", "jinja", "file"])
def test_where_templates_are(folder: Path, text: TextCodec, where: str) -> None:
    file = None
    if where == "config":
        named(folder, CHATML)
    elif where == "named":
        named(folder, [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}])
    else:
        file = folder / ("chat_template.jinja" if where == "jinja" else "mine.jinja")
        file.write_text(CHATML)
    found = find_template(folder, False, file if where == "file" else None)
    assert found is not None
    special = text.tokenizer.encode("</s>", special=True)[-1]
    assert found.encode(text.tokenizer, CHAT).count(special) == 2


def test_the_embedded_model_goes_on_with_what_was_said(folder: Path, text: TextCodec) -> None:
    assert find_template(folder, False, None) is None
    plain = find_template(folder, True, None)
    assert plain is not None
    assert plain.encode(text.tokenizer, CHAT[1:]) == text.tokenizer.encode(CHAT[1]["content"])
    assert plain.encode(text.tokenizer, CHAT) == text.tokenizer.encode(
        "Tell stories.\n\n Once upon a time "
    )


def test_what_is_no_template_is_refused(folder: Path) -> None:
    broken = folder / "broken.jinja"
    broken.write_text("{% for %}")
    with pytest.raises(CheckpointError, match="broken.jinja cannot be used"):
        find_template(folder, False, broken)
    with pytest.raises(ConfigError, match="cannot be read"):
        find_template(folder, False, folder / "nowhere")
