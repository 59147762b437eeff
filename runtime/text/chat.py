"""Chat templates: the messages of a conversation as the text, and the ids, a model was trained on.

    ChatTemplate.of(bundle.path).render([{"role": "user", "content": "Hello"}])

A template comes with the model and is nobody's code but a stranger's: Jinja's sandbox runs it, in a
process of its own with limits on time and memory (chat_child.py), because a sandbox has neither.
What users write stays text: the name of a control token in a message never becomes that token.
"""

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.files.json_files import file_bytes, read_json_object, regular_file
from hotcold.runtime.model.checkpoints.bundle import source_folder
from hotcold.runtime.model.checkpoints.tokenizer_files import CONFIGS, SPECIAL, special_text
from hotcold.runtime.text.tokenizer import Tokenizer

FILE = "chat_template.jinja"
LIMIT_BYTES = 1 << 20  # of a template; the longest known have 20 kB
TIMEOUT_S = 20.0  # a template takes milliseconds, a busy machine seconds to start a process
GUARD = "\ufdd0"  # a noncharacter: breaks the names of control tokens in what users write
_BOOT = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from hotcold.runtime.text.chat_child import main; main()"
)
Message = Mapping[str, Any]


class ChatTemplate:
    """A model's chat template; make it with `of`. Rendering is safe from several threads."""

    def __init__(self, template: str, special: Mapping[str, str], origin: str) -> None:
        self._template, self._special, self._origin = template, dict(special), origin
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, folder: Path) -> "ChatTemplate":
        """The template of a bundle's or checkpoint's folder.

        Raises:
            CheckpointError: it has none, or one that is too large.
        """
        template, origin = None, folder / FILE
        if regular_file(origin):
            if file_bytes(origin) <= LIMIT_BYTES:
                template = origin.read_text(encoding="utf-8", errors="replace")
        elif regular_file(folder / CONFIGS[0]):
            origin = folder / CONFIGS[0]
            template = read_json_object(origin).get("chat_template")
            if isinstance(template, list):  # several, by name
                named = {str(t.get("name")): t for t in template if isinstance(t, dict)}
                template = named.get("default", {}).get("template")
        if not isinstance(template, str) or not template or len(template) > LIMIT_BYTES:
            raise CheckpointError(
                f"{source_folder(folder)} has no chat template of at most {LIMIT_BYTES} bytes, so "
                "messages cannot be put into words it knows; use one that was trained to chat, or "
                "give a plain prompt"
            )
        return cls.given(template, folder, str(origin))

    @classmethod
    def given(cls, template: str, folder: Path, origin: str) -> "ChatTemplate":
        """A template from elsewhere, with the special tokens of a folder; errors say its origin."""
        special = {key: text for key in SPECIAL if (text := special_text(folder, key))}
        return cls(template, special, origin)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        **more: Any,  # noqa: ANN401 - what a template may ask for: tools, enable_thinking
    ) -> str:
        """The text of a conversation; with a generation prompt, up to where the reply begins.

        Raises:
            ConfigError: messages that are none, or that the template refuses.
            CheckpointError: the template is broken, or takes too much time or memory.
        """
        _check(messages)
        given = {
            "template": self._template,
            "values": {
                **self._special,
                **more,
                "messages": [dict(message) for message in messages],
                "add_generation_prompt": add_generation_prompt,
            },
        }
        try:
            question = json.dumps(given).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise ConfigError(f"messages must be plain JSON ({error}); correct them") from error
        with self._lock:
            answer = self._ask(question)
        if "text" in answer:
            return str(answer["text"])
        said = str(answer.get("error", ""))[:300]
        if answer.get("refused"):
            raise ConfigError(f"the chat template refuses these messages: {said}; change them")
        raise CheckpointError(
            f"the chat template in {self._origin} cannot be used: {said}; give a plain prompt"
        )

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        **more: Any,  # noqa: ANN401 - as render has them
    ) -> list[int]:
        """Ids of `render`'s text: control tokens of the template are such, those of messages text.

        Raises:
            ConfigError, CheckpointError: as `render` and `Tokenizer.encode` do.
        """
        _check(messages)
        guarded = [_guarded(message, tokenizer) for message in messages]
        return tokenizer.encode_rendered(self.render(guarded, add_generation_prompt, **more), GUARD)

    def close(self) -> None:
        """End the process; rendering again starts another. Idempotent."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, question: bytes) -> dict[str, Any]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        child = self._child
        assert child.stdin is not None and child.stdout is not None  # noqa: S101 - pipes
        answer = b""
        try:
            child.stdin.write(question)
            child.stdin.flush()
            while not answer.endswith(b"\n"):
                ready, _, _ = select.select([child.stdout], [], [], TIMEOUT_S)
                piece = os.read(child.stdout.fileno(), 1 << 20) if ready else b""
                if not piece:
                    self.close()
                    return {"error": "it took too much time or memory"}
                answer += piece
            return dict(json.loads(answer))
        except (OSError, ValueError) as error:
            self.close()
            return {"error": f"its process ended ({error})"}

    def __del__(self) -> None:
        self.close()


def _check(messages: Sequence[Message]) -> None:
    for message in messages if not isinstance(messages, (str, bytes)) else [messages]:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConfigError(
                f"a message is {message!r:.80}; it must be an object with role and content"
            )
    if not messages:
        raise ConfigError("there are no messages; give at least one")


def _guarded(message: Message, tokenizer: Tokenizer) -> dict[str, Any]:
    """A message in whose texts no control token's name is whole."""

    def guard(value: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(value, str):
            text = value.replace(GUARD, "")
            for name in tokenizer.control_tokens(text):
                text = text.replace(name, name[:1] + GUARD + name[1:])
            return text
        if isinstance(value, Mapping):
            return {key: guard(one) for key, one in value.items()}
        return [guard(one) for one in value] if isinstance(value, list) else value

    return {key: value if key == "role" else guard(value) for key, value in message.items()}
