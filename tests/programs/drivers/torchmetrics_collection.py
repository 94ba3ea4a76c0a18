"""TorchMetrics: collections for classification, regression, retrieval, detection and text-free images."""

from __future__ import annotations

import torch
from outcome import device, done, warm
from torchmetrics import MeanMetric, MetricCollection, MetricTracker
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassAveragePrecision,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)  # fmt: skip
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef, R2Score, SpearmanCorrCoef
from torchmetrics.retrieval import RetrievalMAP, RetrievalNormalizedDCG

torch.manual_seed(0)
classes = MetricTracker(
    MetricCollection(
        [kind(5) for kind in (MulticlassAccuracy, MulticlassF1Score, MulticlassAUROC, MulticlassAveragePrecision)]
        + [MulticlassCalibrationError(5)]
    )
).to(device())
table = MulticlassConfusionMatrix(5).to(device())
errors = MetricCollection([MeanSquaredError(), R2Score(), PearsonCorrCoef(), SpearmanCorrCoef()]).to(device())
found = MetricCollection([RetrievalMAP(), RetrievalNormalizedDCG()]).to(device())
pictures = MetricCollection([PeakSignalNoiseRatio(1.0), StructuralSimilarityIndexMeasure(data_range=1.0)]).to(device())
mean = MeanMetric(nan_strategy="ignore").to(device())
for _epoch in range(2):
    classes.increment()
    for _ in range(3):
        scores, labels = torch.rand(32, 5).softmax(-1).to(device()), torch.randint(0, 5, (32,)).to(device())
        classes.update(scores, labels)
        table.update(scores, labels)
        errors.update(scores[:, 0], labels.float())
        found.update(scores[:, 0], labels > 2, indexes=torch.arange(32).to(device()) // 8)
        pictures.update(torch.rand(2, 3, 32, 32).to(device()), torch.rand(2, 3, 32, 32).to(device()))
        mean.update(scores.mean())
    values = {**classes.compute(), **errors.compute(), **found.compute(), **pictures.compute()}
    warm()
best = {name: float(value) for name, value in classes.best_metric().items()}
done(
    **{name: value.item() for name, value in values.items()},
    table=table.compute().tolist(),
    best=best,
    mean=mean.compute().item(),
)
