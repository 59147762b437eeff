"""The exchange of one engine as programs for the model checker; planted bugs by keyword.

`host_passes`: GPU executor (its CPU device), predictor and CPU executor, with flags that hold pass
numbers. `stream_passes`: the GPU side with binary words that a captured graph can set and await.
"""

from support.machine import Op


def payload(name: str, address: str, value: int) -> list[Op]:
    """Two accesses, so that a reader may come between."""
    return [Op(name, f"{address}.a", value), Op(name, f"{address}.b", value)]


def signal(flag: str, seq: int, *, fence: bool = True, look_first: bool = False) -> list[Op]:
    """hc_flag_signal; without the fence, or with its look before the store: planted bugs."""
    if look_first:
        return [Op("look", flag), Op("store", flag, seq), Op("wake", flag)]
    ordered = [Op("fence")] if fence else []
    return [Op("delayed", flag, seq), *ordered, Op("look", flag), Op("wake", flag)]


def host_passes(
    layers: int,
    passes: int,
    cold: tuple[int, ...],
    *,
    selective: bool = True,
    barrier: bool = True,
    payload_first: bool = True,
    fence: bool = True,
    look_first: bool = False,
) -> dict[str, list[Op]]:
    """Programs of the three actors.

    Args:
        layers: layers of the model.
        passes: tokens, one after the other.
        cold: layers in which the CPU executor owns neurons.
        selective: the GPU executor does not wait where no cold neuron is active ...
        barrier: ... except in the last of the cold layers.
        payload_first: payloads are written before they are signalled.
        fence: a signal looks for sleepers after its store is visible.
        look_first: a signal looks for sleepers before its store.
    """
    gpu: list[Op] = []
    predictor: list[Op] = []
    cpu: list[Op] = []

    def publish(stores: list[Op], flag: str, seq: int) -> list[Op]:
        signalled = signal(flag, seq, fence=fence, look_first=look_first)
        return stores + signalled if payload_first else signalled + stores

    for seq in range(1, passes + 1):
        for layer in range(layers):
            x, hot, cool, count, y = (f"{name}{layer}" for name in ("x", "hot", "cold", "n", "y"))
            x_flag, active_flag, y_flag = (f"{name}{layer}" for name in ("X", "A", "Y"))
            gpu += publish(payload("store", x, seq), x_flag, seq)
            gpu += [Op("wait", active_flag, seq), Op("load", hot, seq)]
            predictor += [Op("wait", x_flag, seq), *payload("load", x, seq)]
            lists = [Op("choose", count, seq), Op("store", hot, seq)]
            predictor += publish(lists + payload("store", cool, seq), active_flag, seq)
            if layer not in cold:
                continue
            merge = payload("load", y, seq)
            must_wait = not selective or (barrier and layer == max(cold))
            if must_wait:
                gpu += [Op("wait", y_flag, seq), Op("skip_if_none", count, seq, len(merge)), *merge]
            else:
                gpu += [Op("skip_if_none", count, seq, 1 + len(merge))]
                gpu += [Op("wait", y_flag, seq), *merge]
            cpu += [Op("wait", x_flag, seq), Op("wait", active_flag, seq)]
            cpu += payload("load", x, seq) + payload("load", cool, seq)
            result = payload("store", y, seq)
            cpu += [Op("skip_if_none", count, seq, len(result))]
            cpu += publish(result, y_flag, seq)
    return {"gpu": gpu, "predictor": predictor, "cpu": cpu}


def stream_passes(
    layers: int,
    passes: int,
    *,
    barrier: bool = True,
    clear_first: bool = True,
    watchdog: bool = True,
) -> dict[str, list[Op]]:
    """Programs with binary words: the GPU sets `ready` and clears `done`, the CPU the other way.

    The words are constants of a captured graph, so the pass number travels in the payload. Without
    cold neurons the GPU satisfies its own wait and the CPU only clears `ready`; in the last layer
    the CPU always answers and the GPU always waits for it.

    Args:
        layers: layers, the CPU owns neurons in all of them.
        passes: replays of the graph.
        barrier: the GPU waits for the CPU in the last layer whatever the count.
        clear_first: the CPU clears `ready` before it sets `done`.
        watchdog: a thread of the GPU process writes the done words on poison.
    """
    gpu: list[Op] = []
    cpu: list[Op] = []
    for seq in range(1, passes + 1):
        for layer in range(layers):
            x, count, y = f"x{layer}", f"n{layer}", f"y{layer}"
            ready, done = f"ready{layer}", f"done{layer}"
            last = barrier and layer == layers - 1
            use = payload("use", y, seq)
            gpu += [Op("choose", count, seq), *payload("store", x, seq), Op("store", ready, 1)]
            if not last:  # skip the self-made done where some are active
                gpu += [Op("skip_if_some", count, seq, 1), Op("store", done, 1)]
            gpu += [Op("stream_wait", done, 1), Op("skip_if_none", count, seq, len(use)), *use]
            gpu += [Op("store", done, 0)]
            answer = [Op("store", ready, 0), Op("store", done, 1)]
            answer = answer if clear_first else answer[::-1]
            result = payload("store", y, seq)
            cpu += [Op("spin", ready, 1), *payload("load", x, seq)]
            if last:
                cpu += [Op("skip_if_none", count, seq, len(result)), *result, *answer]
            else:
                cpu += [Op("skip_if_some", count, seq, 2), Op("store", ready, 0)]
                cpu += [Op("skip", jump=len(result) + len(answer)), *result, *answer]
        gpu += [Op("deliver")]
    guard = [Op("await_poison"), *(Op("store", f"done{layer}", 1) for layer in range(layers))]
    programs = {"gpu": gpu, "cpu": cpu}
    return programs | {"watchdog": guard} if watchdog else programs
