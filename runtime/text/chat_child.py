"""The process that renders chat templates: a line of JSON in, a line of JSON out.

Run by chat.py. Jinja's sandbox lets a template call no code but its own; limits on the address
space and on the seconds of CPU end one that grows or turns without end. Source of what templates
expect: transformers' chat_template_utils.
"""

import datetime
import json
import resource
import sys
from typing import Any

MEMORY_BYTES = 1 << 30
CPU_S = 5


class Refused(Exception):
    """A template called raise_exception."""


def _refuse(text: object) -> None:
    raise Refused(str(text))


def _tojson(value: Any, indent: int | None = None, **more: Any) -> str:  # noqa: ANN401 - JSON
    return json.dumps(value, ensure_ascii=False, indent=indent, **more)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)  # noqa: DTZ005 - the user's own time is meant


def render(template: str, values: dict[str, Any]) -> dict[str, Any]:
    """The text of a template, or the error it made."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    try:
        return {"text": environment.from_string(template).render(**values)}
    except Refused as error:
        return {"error": str(error), "refused": True}
    except TemplateError as error:
        return {"error": str(error)}
    except (MemoryError, RecursionError) as error:
        return {"error": f"it took too much time or memory ({type(error).__name__})"}
    except Exception as error:  # noqa: BLE001 - of a foreign template anything may come
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Answer until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        end = int(used.ru_utime + used.ru_stime) + CPU_S + 1
        resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        given = json.loads(line)
        answer = render(given["template"], given["values"])
        answer = {key: v[:300] if key == "error" else v for key, v in answer.items()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
