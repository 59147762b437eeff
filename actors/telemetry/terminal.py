"""The live view as lines of plain text, for any width; colours are added by whoever wants them."""

from collections.abc import Callable, Sequence
from typing import Any

Paint = Callable[[str, str], str]  # text and a colour's name to what is printed
NARROW = 76
GPU, CPU, QUIET = "yellow", "cyan", "bright_black"


def plain(text: str, _colour: str) -> str:
    """No colours."""
    return text


def bar(shares: Sequence[tuple[float, str, str]], width: int, paint: Paint = plain) -> str:
    """Shares of a whole, each with its letter and colour; what is left is dots."""
    made, used, total = "", 0, 0.0
    for share, letter, colour in shares:
        total += max(0.0, share)
        until = min(width, round(total * width))
        made += paint(letter * (until - used), colour)
        used = max(used, until)
    return made + paint("." * (width - used), QUIET)


def lines(seen: dict[str, Any], width: int = 100, paint: Paint = plain) -> list[str]:
    """What `LiveView.snapshot` says, at most `width` columns wide."""
    made = [*_head(seen, width), "", *_actors(seen, width, paint)]
    if seen["layers"]:
        made += ["", *_layers(seen, width, paint)]
    return made


def _head(seen: dict[str, Any], width: int) -> list[str]:
    about, requests = seen["about"], seen["requests"]
    words = [f"engine {seen['engine']}"]
    if about:
        words += [f"model {about.get('model')}", f"policy {about.get('policy')}"]
        words += [f"schedule {about.get('schedule')}", f"transport {about.get('transport')}"]
    words += [f"epoch {seen['epoch']}"]
    if requests:
        words += [f"recoveries {requests.get('losses', 0)}"]
    if seen["silent_s"] > 2.0:
        words += [f"SILENT for {seen['silent_s']:.0f} s"]
    speeds = []
    if "tokens_per_s" in seen:
        speeds += [f"{seen['tokens_per_s']:.1f} tokens/s"]
        speeds += [f"prompts {seen['prompt_tokens_per_s']:.1f} tokens/s"]
        speeds += [f"{seen['passes_per_s']:.1f} passes/s"]
    if requests:
        speeds += [f"{requests.get('running', 0)} running", f"{requests.get('waiting', 0)} waiting"]
        speeds += [f"{requests.get('finished', 0):,} done"]
        speeds += [f"{requests.get('generation_tokens', 0):,} tokens made"]
    if seen["gpu_neuron_load"] is not None:
        speeds += [
            f"{100 * seen['gpu_neuron_load']:.1f} % of activated neurons on the GPU executor"
        ]
    if seen["recall"] is not None:
        found = seen["recall"]
        speeds += [f"recall {100 * found['recall']:.2f} +- {100 * found['error']:.2f} %"]
    return [*_wrapped(words, width), *_wrapped(speeds, width)]


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    """Words with two blanks between them, in as many lines as it takes."""
    made: list[str] = []
    for word in words:
        if made and len(made[-1]) + 2 + len(word) <= width:
            made[-1] += f"  {word}"
        else:
            made.append(word[:width])
    return made


def _actors(seen: dict[str, Any], width: int, paint: Paint) -> list[str]:
    room = 16 if width >= NARROW else max(4, min(10, (width - 24) // 2))
    made = [f"{'actor':<10}{'computes':<{room + 7}}{'waits':<{room + 7}}"]
    if width >= NARROW:
        made[0] += f"{'GB/s':>7}{'neurons/s':>12}"
    for actor, own in seen["actors"].items():
        colour = {"gpu": GPU, "cpu": CPU}.get(actor.rstrip("0123456789"), "magenta")
        line = f"{actor[:9]:<10}"
        if not own["is_heard"]:
            made.append(line + "not heard")
            continue
        for share, letter, ink in ((own["busy"], "#", colour), (own["wait"], "~", QUIET)):
            line += f"{bar([(share, letter, ink)], room, paint)} {100 * share:3.0f} % "
        if width >= NARROW:
            line += f"{own['gb_per_s']:7.2f}{own['neurons_per_s']:12,.0f}"
        made.append(line.rstrip())
    return made


def _layers(seen: dict[str, Any], width: int, paint: Paint) -> list[str]:
    devices = seen["about"].get("devices") or ["gpu0", "cpu0"]
    room = max(8, min(48, (width - 20) // 2))
    made = [
        f"{'layer':<6}{'neurons: # ' + devices[0] + ', . ' + devices[-1]:<{room + 1}} "
        f"{'active (x4): # ' + devices[0] + ', = ' + devices[-1]}"[: width - 6]
    ]
    for number, layer in enumerate(seen["layers"]):
        owned, listed = layer["owned"], layer["listed"]
        total, known = sum(owned) or 1, [n for n in listed if n is not None]
        hot = bar([(owned[0] / total, "#", GPU)], room, paint)
        line = f"{number:<6}{hot} "
        if known and layer["pass"]:
            # Drawn four times as long, since few neurons fire.
            parts = [
                (4 * (n or 0) / total, "#" if device == 0 else "=", GPU if device == 0 else CPU)
                for device, n in enumerate(listed)
            ]
            line += bar(parts, max(4, room - 4), paint)
            line += f" {100 * sum(known) / total:4.1f} %"
        else:
            line += "not to be seen"
        made.append(line)
    return made
