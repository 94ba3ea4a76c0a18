"""pytorch-tabnet: pretraining by masks, then a classifier with early stopping, explanations and a saved model."""

from __future__ import annotations

import numpy as np
import torch
from outcome import done, warm
from pytorch_tabnet.pretraining import TabNetPretrainer
from pytorch_tabnet.tab_model import TabNetClassifier

drawn = np.random.default_rng(0)
x, y = drawn.random((256, 8)).astype(np.float32), drawn.integers(0, 3, 256)
first = TabNetPretrainer(n_d=8, n_a=8, n_steps=2, seed=0, verbose=0, device_name="auto", optimizer_fn=torch.optim.Adam)
first.fit(x, eval_set=[x], max_epochs=1, batch_size=64, virtual_batch_size=32)
warm()
model = TabNetClassifier(n_d=8, n_a=8, n_steps=2, seed=0, verbose=0, device_name="auto")
model.fit(x, y, eval_set=[(x, y)], max_epochs=3, batch_size=64, virtual_batch_size=32, from_unsupervised=first)
explained, _ = model.explain(x[:16])
again = TabNetClassifier(device_name="auto", verbose=0)
again.load_model(model.save_model("tabnet"))
done(
    losses=list(map(float, model.history["loss"])),
    explained=float(explained.sum()),
    proba=again.predict_proba(x)[:2].tolist(),
)
