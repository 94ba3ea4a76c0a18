"""Libraries that training programs call: torchvision, torchmetrics, transformers, data loading, torch.compile."""

from __future__ import annotations

from .case import Case, table

VISION: tuple[Case, ...] = table(
    "torchvision",
    """
    B O.nms(b, s9, 0.5)
    B O.batched_nms(b, s9, i9, 0.5)
    - O.box_iou(b, b)
    - O.generalized_box_iou(b, b)
    - O.box_convert(b, "xyxy", "cxcywh")
    - O.box_area(b)
    - O.clip_boxes_to_image(b, (16, 16))
    B O.remove_small_boxes(b, 0.1)
    B O.masks_to_boxes(x4[0] > 0.5)
    - O.roi_align(x4, r, 2)
    - O.roi_pool(x4, r, 2)
    - O.roi_align(x4, [b, b], 2)
    - O.sigmoid_focal_loss(A, (A > 0.5).float())
    - O.drop_block2d(x4, 0.1, 3)
    - O.stochastic_depth(x4, 0.1, "row")
    - O.complete_box_iou_loss(b, b + 1, reduction="mean")
    - V.Normalize([0.5] * 3, [0.5] * 3)(x4)
    - V.RandomCrop(8)(x4)
    - V.RandomHorizontalFlip(1.0)(x4)
    - V.RandomResizedCrop(8, antialias=True)(x4)
    - V.Resize(8, antialias=True)(x4)
    - V.ColorJitter(0.1, 0.1)(x4)
    - V.ToDtype(T.float16)(x4)
    - V.GaussianBlur(3)(x4)
    - V.RandomRotation(9)(x4)
    - V.RandomErasing(1.0)(x4)
    - V.MixUp(num_classes=9)(x4, l[:2])
    - V.CutMix(num_classes=9)(x4, l[:2])
    """,
    setup="""
import torchvision.ops as O
from torchvision.transforms import v2 as V
b = T.rand(9, 4, device=D) * 8
b[:, 2:] += b[:, :2]
s9 = T.rand(9, device=D)
i9 = l[:9]
r = T.cat([T.zeros(9, 1, device=D), b], 1)
""",
    needs='has("torchvision")',
)

METRICS: tuple[Case, ...] = table(
    "torchmetrics",
    """
    B k = C.MulticlassAccuracy(9).to(D); k.update(y, t) || k.update(y, t)
    - k = C.MulticlassAccuracy(9, validate_args=False).to(D); k.update(y, t) || k.update(y, t)
    - k = C.MulticlassAccuracy(9, validate_args=False).to(D); k.update(y, t) || k.compute()
    - k = C.MulticlassAccuracy(9, average="micro", validate_args=False).to(D); k.update(y, t) || k.update(y, t)
    B k = C.MulticlassAccuracy(9, ignore_index=0, validate_args=False).to(D); k.update(y, t) || k.update(y, t)
    B k = C.MulticlassF1Score(9).to(D); k.update(y, t) || k.update(y, t)
    - k = C.MulticlassF1Score(9, validate_args=False).to(D); k.update(y, t) || k.compute()
    - k = C.MulticlassConfusionMatrix(9, validate_args=False).to(D); k.update(y, t) || k.update(y, t)
    - k = C.MulticlassConfusionMatrix(9).to(D); k.update(y, t) || k.compute()
    B k = C.BinaryAccuracy().to(D); k.update(g, m.long()) || k.update(g, m.long())
    B k = C.BinaryAUROC().to(D); k.update(g, m.long()) || k.compute()
    - k = R.MeanMetric(nan_strategy="ignore").to(D); k.update(g) || k.compute()
    B k = R.MeanMetric().to(D); k.update(g) || k.update(g)
    - k = R.MeanMetric(nan_strategy=0.0).to(D); k.update(g) || k.update(g)
    - k = R.MeanMetric().to(D); k.update(g) || k.compute()
    B k = R.MeanMetric().to(D); k.update(g) || k.update(3.0)
    - k = R.MeanSquaredError().to(D); k.update(g, h) || k.update(g, h)
    - k = R.MeanMetric().to(D); k.update(g) || k.reset()
    B k = R.MeanMetric().to(D); k.update(g) || k.compute().item()
    """,
    setup="""
import torchmetrics as R
import torchmetrics.classification as C
y = T.rand(64, 9, device=D)
t = l[:64]
""",
    needs='has("torchmetrics")',
)

TRANSFORMERS: tuple[Case, ...] = table(
    "transformers",
    """
    - q = gpt() || q(i)
    - q = gpt() || q(i, labels=i)
    B q = gpt() || q(i, labels=i).loss.item()
    - q = gpt(); L = q(i, labels=i).loss || L.backward()
    - q = gpt() || q(i, attention_mask=ones)
    B q = gpt().eval() || q.generate(i, max_new_tokens=2, do_sample=False, pad_token_id=0)
    B q = gpt().eval() || q.generate(i, attention_mask=ones, max_new_tokens=2, do_sample=False, pad_token_id=0)
    - q = bert() || q(i)
    B q = bert() || q(i, attention_mask=ones)
    - q = bert() || q(i, labels=l[:2] % 2)
    B q = bert(); k = dict(input_ids=i.cpu(), labels=ci[:2] % 2) || q(**{n: v.to(D) for n, v in k.items()})
    """,
    setup="""
import transformers as H
H.logging.set_verbosity_error()
i = l[:16].view(2, 8) + 1
ones = T.ones_like(i)
def gpt():
    c = H.GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    return H.GPT2LMHeadModel(c).to(D)
def bert():
    c = H.BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return H.BertForSequenceClassification(c).to(D)
""",
    needs='has("transformers")',
)

DATA: tuple[Case, ...] = table(
    "data",
    """
    - q = loader(pin_memory=pin) || [b.to(D, non_blocking=True) for b, in q]
    B q = loader(pin_memory=pin) || [b.to(D) for b, in q]
    B q = loader() || [b.to(D) for b, in q]
    - q = loader() || [b.to(D, non_blocking=True) for b, in q]
    B q = big() || [b.to(D, non_blocking=True) for b, in q]
    - q = big(pin_memory=pin) || [b.to(D, non_blocking=True) for b, in q]
    - q = loader() || next(iter(q))
    - q = Data.DataLoader(Data.TensorDataset(A), 8) || next(iter(q))
    B q = Data.DataLoader(Data.TensorDataset(A), 8, shuffle=True) || next(iter(q))[0].sum().item()
    - Data.default_collate([A, A])
    B Data.default_collate([A, A]).cpu()
    B Data.TensorDataset(A)[ci]
    - Data.random_split(A, [32, 32])
    """,
    setup="""
import torch.utils.data as Data
pin = dev == "cuda"
def loader(**k):
    return Data.DataLoader(Data.TensorDataset(s[:, None].expand(9, 64).contiguous()), 3, num_workers=0, **k)
def big(**k):
    return Data.DataLoader(Data.TensorDataset(c.view(4, 1 << 20)), 2, num_workers=0, **k)
""",
)

LIGHTNING: tuple[Case, ...] = table(
    "lightning",
    """
    - P.utilities.grad_norm(M, 2)
    B float(P.utilities.grad_norm(M, 2)["grad_2.0_norm_total"])
    B P.seed_everything(1, verbose=False); g[m]
    """,
    setup="""
import pytorch_lightning as P
import pytorch_lightning.utilities
M = nn.Linear(64, 8, device=D)
M(A).sum().backward()
""",
    needs='has("pytorch_lightning")',
)

# Compiled functions live as long as the process: compiling takes seconds, so each is warmed once and kept on ``torch``.
COMPILED: tuple[Case, ...] = table(
    "compile",
    """
    - f = warm("plain", lambda t: (t * 2).sin().sum(), g) || f(g)
    B f = warm("item", lambda t: t * t.sum().item(), g) || f(g)
    B f = warm("nonzero", lambda t: t[t.nonzero()].sum(), g) || f(g)
    """,
    setup="""
def warm(name, function, *inputs):
    kept = T.__dict__.setdefault("_corpus_compiled", {})
    if name not in kept:
        kept[name] = T.compile(function)
    for _ in range(2):
        kept[name](*inputs)
    return kept[name]
""",
    needs='dev == "cuda"',
)

CASES: tuple[Case, ...] = VISION + METRICS + TRANSFORMERS + DATA + LIGHTNING + COMPILED
