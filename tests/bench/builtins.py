"""What a firing of each built-in costs at the reference shapes of docs/reference/probes.md: in the step, and in its helper.

    python -m tests.bench.builtins [--quick]

Responsible for: the rows of build/bench/builtins.jsonl, process CPU time in microseconds, machine code, one thread. Refuses: nothing.
"""

import sys
from time import process_time_ns

import torch

from probes import catalogue, isa, library
from probes.helpers.subject import Subject
from probes.jit import Compiler
from probes.program import Context
from servers.models.patch import PatchConfig, PatchModel
from tests.bench._rows import Rows


def tensors() -> dict[str, dict[str, object]]:
    """What each kind of hook hands out."""
    torch.manual_seed(0)
    hidden = [(f"{n}:{n}", torch.randn(64, 16, 64), torch.randn(64, 16, 64)) for n in range(4)]
    logits = [torch.randn(1024, 10) for _ in range(2)]
    kd = {"student_logits": logits[0], "teacher_logits": logits[1], "labels": torch.randint(0, 10, (1024,))}
    weight = torch.randn(256, 256)
    return {
        "on_kd_step": {**kd, "hidden": hidden},
        "on_forward": {"output": torch.randn(64, 16, 64)},
        "on_grad": {"grad": torch.randn(256, 256), "param": weight},
        "on_prune": {"pruned": [("weight", (weight.abs() > 0.5).float(), weight * (weight.abs() > 0.5))]},
        "on_attention": {},
        "on_snapshot": {},
    }


def subject() -> Subject:
    """A student and a teacher of the digits app's kind on a batch of 64."""
    models = {
        "student": PatchModel(PatchConfig(width=32, layers=2)),
        "teacher": PatchModel(PatchConfig(width=64, layers=4)),
    }
    labels = torch.randint(0, 10, (64,))
    batch = {**models["student"].example(64, 1), "labels": labels}

    def forward(role, columns):
        return models[role].forward(columns).logits, columns["labels"]

    return Subject({role: model.module for role, model in models.items()}, forward, batch, torch.no_grad)


def main() -> None:
    """Each built-in in turn, a few hundred firings."""
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    rounds = 5 if quick else 200
    rows = Rows("builtins", "python -m tests.bench.builtins")
    compiler, given, attention = Compiler(), tensors(), torch.softmax(torch.randn(16, 4, 16, 16), -1)
    looked_at = subject()
    for name, builtin in catalogue.BUILTINS.items():
        prog = f"builtin:{name}" + (",windows=1" if "windows" in builtin.params else "")
        if not compiler.unavailable:
            compiler.compile(isa.encode(library.compile(prog)))
        program = library.build(prog, compiler=compiler, subject=lambda: looked_at)
        context = Context(builtin.hooks[0], "site", 0, given[builtin.hooks[0]], lambda: (attention, "eager"))
        firing, helper = [], []
        # Looks at a window's end take milliseconds and vary little.
        for _ in range(rounds if builtin.hooks[0] != "on_snapshot" else max(5, rounds // 10)):
            started = process_time_ns()
            with torch.no_grad():
                program.fire(context)
            between = process_time_ns()
            served = program.worker.serve()
            ended = process_time_ns()
            program.land()
            firing.append((between - started) / 1e3)
            helper += [(ended - between) / 1e3] * bool(served)
        where = "inside the step" if program.backend == "jit" else "inside the step, interpreter"
        rows.add(f"builtin:{name}, {where}", firing, unit="us")
        if helper:
            rows.add(f"builtin:{name}, its helper", helper, unit="us")
    compiler.close()
    rows.write()


if __name__ == "__main__":
    main()
