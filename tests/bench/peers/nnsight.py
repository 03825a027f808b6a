"""nnsight: the figures of the blocks' outputs saved out of a trace, beside `rms` on the same blocks of the same GPT-2."""

from __future__ import annotations

import sys
from importlib.metadata import version

import torch
from nnsight import NNsight

from tests.bench._probes_time import Hooks, Turn
from tests.bench.peers import _watch
from tests.bench.peers._serve import serve


def main() -> None:
    model = _watch.gpt2()
    x = _watch.tokens()
    torch.set_grad_enabled(False)
    unwrapped = Hooks(model)
    unwrapped.fork()
    sight = NNsight(model)
    wrapped = Hooks(model)
    unwrapped.put()

    def saved() -> list[tuple[float, float, int]]:
        with sight.trace(x):
            found = []
            for block in sight.transformer.h:
                output = block.output
                hidden = output[0] if isinstance(output, tuple) else output
                found.append(_watch.figures(hidden))
            found = found.save()
        return found

    unwrapped.fork()
    watched = _watch.hosted(model, "on_forward:student/transformer.h.*", sys.argv[1], lambda: model(x))

    def probed() -> None:
        watched.step()
        model(x)

    probed()
    ours = Hooks(model)
    wrapped.put()
    _watch.require_same(watched.program, saved())
    serve(
        {
            "plain": Turn(lambda: model(x), unwrapped.put),
            "a/a": Turn(lambda: model(x), unwrapped.put),
            "peer": Turn(saved, wrapped.put),
            "ours": Turn(probed, ours.put),
        },
        {"version": version("nnsight"), "our_bytes": watched.bytes, "sites": watched.sites},
    )


if __name__ == "__main__":
    main()
