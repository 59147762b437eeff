"""Which template makes prompts of a server's chats."""

from contextlib import suppress
from pathlib import Path

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.text.chat import ChatTemplate

# For the embedded model, which knows no turns: it goes on with what was said.
PLAIN = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '\\n\\n' if not loop.first }}{{ message.content }}{% endfor %}"
)


def find_template(folder: Path, is_embedded: bool, file: Path | None) -> ChatTemplate | None:
    """The template of a file, else of a model's folder; None where there is none.

    Raises:
        ConfigError: the file cannot be read.
        CheckpointError: it cannot be used.
    """
    if file is not None:
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--chat-template {file} cannot be read ({error}); give a file"
            ) from None
        found = ChatTemplate.given(source, folder, str(file))
    elif is_embedded:
        return ChatTemplate.given(PLAIN, folder, "the embedded model")
    else:
        try:
            found = ChatTemplate.of(folder)
        except CheckpointError:
            return None
    with suppress(ConfigError):  # it may want other messages
        found.render([{"role": "user", "content": "Hello"}])
    return found
