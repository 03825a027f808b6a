"""Compute the pinned values again, with the packages installed somewhere on the path:

    pip install --target DIR --no-deps netcal==1.4.0 backpack-for-pytorch==1.7.1 einops unfoldNd torch-cka==0.21
    PYTHONPATH=DIR python -m tests.oracles

Their dependencies (pyro, gpytorch, tensorboard, torchvision, matplotlib) weigh more than this project, so tests read the file that
this writes, tests/golden/probe_oracles.json. matplotlib, which torch-cka only draws with, is left out.
"""

import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from tests.oracles import inputs

TARGET = Path(__file__).parent.parent / "golden" / "probe_oracles.json"


def ece() -> float:
    from netcal.metrics import ECE

    logits, labels = inputs.calibration()
    p = np.exp(logits - logits.max(1, keepdims=True))
    return float(ECE(bins=15).measure(p / p.sum(1, keepdims=True), labels))


def fisher() -> dict[str, float]:
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    weights, x, y = inputs.network()
    model = extend(torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 4)))
    for parameter, values in zip(model.parameters(), weights, strict=True):
        parameter.data = torch.tensor(values)
    loss = extend(torch.nn.CrossEntropyLoss(reduction="sum"))
    with backpack(SumGradSquared()):
        loss(model(torch.tensor(x)), torch.tensor(y)).backward()
    squares = [p.sum_grad_squared.double() / len(x) for p in model.parameters()]
    return {"trace": float(sum(s.sum() for s in squares)), "max": max(float(s.max()) for s in squares)}


def cka() -> float:
    for name in ("matplotlib", "matplotlib.pyplot", "mpl_toolkits", "mpl_toolkits.axes_grid1"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["mpl_toolkits"].axes_grid1 = sys.modules["mpl_toolkits.axes_grid1"]
    from torch_cka import CKA

    batches = inputs.representations()
    x, y = (torch.tensor(np.concatenate([pair[side] for pair in batches])) for side in (0, 1))
    sides = [torch.nn.Sequential(torch.nn.Identity()) for _ in range(2)]
    loaders = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(s), batch_size=40) for s in (x, y)]
    measured = CKA(*sides, model1_layers=["0"], model2_layers=["0"], device="cpu")
    measured.compare(*loaders)
    return float(measured.export()["CKA"][0, 0])


def main() -> None:
    versions = {name: version(name) for name in ("netcal", "backpack-for-pytorch", "torch-cka", "torch", "numpy")}
    found = {"versions": versions, "ece": ece(), "fisher": fisher(), "cka": cka()}
    TARGET.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


main()
