"""Generate a story with the embedded model, and see what each actor did for it.

Run: python examples/01_generate.py
"""

from hotcold.actors import Engine


def main() -> None:
    with Engine.launch(vram="28MiB") as engine:
        print("Once upon a time", end="")
        for token in engine.generate("Once upon a time", max_tokens=64):
            print(token.text, end="", flush=True)
        print("\n")
        if engine.last is not None:
            print(f"{engine.last.decode_tokens_per_s:.0f} tokens/s")
        for name, work in engine.stats().actors.items():
            print(f"{name:9} {work.gate_rows:9} gate rows, {work.up_down_rows:9} up/down rows")


if __name__ == "__main__":
    main()
