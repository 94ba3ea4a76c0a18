"""skorch: a classifier in a scikit-learn pipeline with a grid search, early stopping and a checkpoint."""

from __future__ import annotations

import numpy as np
import torch
from outcome import device, done, warm
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, EarlyStopping, EpochScoring
from torch import nn


class Layers(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)


x, y = make_classification(400, 20, n_informative=10, n_classes=3, random_state=0)
x, y = x.astype(np.float32), y.astype(np.int64)
torch.manual_seed(0)
net = NeuralNetClassifier(
    Layers, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=0.01, max_epochs=3, batch_size=64,
    iterator_train__shuffle=True, device=device(), verbose=0,
    callbacks=[EpochScoring("f1_macro"), EarlyStopping(patience=5), Checkpoint(dirname="kept", load_best=True)],
)  # fmt: skip
pipeline = make_pipeline(StandardScaler(), net)
pipeline.fit(x, y)
warm()
search = GridSearchCV(net, {"module__width": [32, 64], "lr": [0.01, 0.1]}, cv=2, scoring="accuracy")
search.fit(x, y)
losses = pipeline[-1].history[:, ("train_loss", "valid_loss", "f1_macro")]
done(
    losses=[list(map(float, row)) for row in losses],
    best=float(search.best_score_),
    proba=float(pipeline.predict_proba(x)[0, 0]),
)
