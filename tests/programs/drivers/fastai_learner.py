"""fastai: a vision Learner by one cycle on generated pictures; tabular data after it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from fastai.callback.schedule import fit_one_cycle  # noqa: F401
from fastai.tabular.all import Categorify, CategoryBlock, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from fastai.vision.all import DataLoaders, Learner, accuracy, set_seed
from outcome import device, done, warm
from torch import nn
from torch.utils.data import TensorDataset

set_seed(0, reproducible=True)
rows = TensorDataset(torch.rand(96, 3, 16, 16), torch.randint(0, 4, (96,)))
loaders = DataLoaders.from_dsets(rows, rows, bs=16, device=torch.device(device()), num_workers=0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
)
learner = Learner(loaders, model, loss_func=nn.CrossEntropyLoss(), metrics=accuracy)
with learner.no_bar(), learner.no_logging():
    learner.fit_one_cycle(1, 1e-2)
    warm()
    learner.fit_one_cycle(2, 1e-2)
    learner.save("kept")
    learner.load("kept")
    first = learner.validate()
    drawn = np.random.default_rng(0)
    table = pd.DataFrame({"a": drawn.random(96), "b": drawn.choice(["x", "y"], 96), "c": drawn.choice(["p", "q"], 96)})
    tabular = TabularDataLoaders.from_df(
        table, y_names="c", cat_names=["b"], cont_names=["a"], procs=[Categorify, FillMissing, Normalize],
        y_block=CategoryBlock(), bs=16, device=torch.device(device()),
    )  # fmt: skip
    second = tabular_learner(tabular, layers=[16], metrics=accuracy)
    with second.no_bar(), second.no_logging():
        second.fit(2, 1e-2)
        values = second.validate()
done(model=learner.model, first=[float(value) for value in first], second=[float(value) for value in values])
