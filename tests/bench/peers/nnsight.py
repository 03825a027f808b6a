"""nnsight: the figures of the blocks' outputs saved out of a trace, beside `rms` on the same blocks of the same GPT-2."""

from __future__ import annotations

import sys
from importlib.metadata import version

import torch
from nnsight import NNsight

from tests.bench.peers import _watch
from tests.bench.peers._serve import serve


def main() -> None:
    plain, control, traced, ours = (_watch.gpt2() for _ in range(4))
    x = _watch.tokens()
    torch.set_grad_enabled(False)
    sight = NNsight(traced)

    def saved() -> list[tuple[float, float, int]]:
        with sight.trace(x):
            found = []
            for block in sight.transformer.h:
                output = block.output
                hidden = output[0] if isinstance(output, tuple) else output
                found.append(_watch.figures(hidden))
            found = found.save()
        return found

    watched = _watch.hosted(ours, "on_forward:student/transformer.h.*", sys.argv[1], lambda: ours(x))

    def probed() -> None:
        watched.step()
        ours(x)

    probed()
    _watch.require_same(watched.program, saved())
    serve(
        {"plain": lambda: plain(x), "a/a": lambda: control(x), "peer": saved, "ours": probed},
        {"version": version("nnsight"), "our_bytes": watched.bytes, "sites": watched.sites},
    )


if __name__ == "__main__":
    main()
