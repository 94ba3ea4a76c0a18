"""Ultralytics' YOLO from its yaml: train with AMP off, val, predict and track of generated pictures with boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from outcome import device, done, warm
from PIL import Image
from ultralytics import YOLO

drawn = np.random.default_rng(0)
for part in ("train", "val"):
    for kind in ("images", "labels"):
        Path(f"data/{kind}/{part}").mkdir(parents=True)
    for index in range(6):
        picture = drawn.integers(0, 90, (64, 64, 3), dtype=np.uint8)
        picture[16:48, 16:48] = 255
        Image.fromarray(picture).save(f"data/images/{part}/{index}.png")
        Path(f"data/labels/{part}/{index}.txt").write_text(f"{index % 2} 0.5 0.5 0.5 0.5\n")
Path("data.yaml").write_text(f"path: {Path('data').resolve()}\ntrain: images/train\nval: images/val\nnames: [a, b]\n")
model = YOLO("yolo11n.yaml")
model.add_callback("on_train_epoch_end", lambda trainer: warm())
model.train(
    data="data.yaml", epochs=3, batch=3, imgsz=64, workers=0, device=0 if device() == "cuda" else "cpu", amp=False,
    plots=False, seed=0, deterministic=True, close_mosaic=1, project=f"{Path.cwd()}/runs", name="one", verbose=False,
)  # fmt: skip
losses = [float(part) for part in model.trainer.tloss.values()]
metrics = model.val(
    data="data.yaml", imgsz=64, workers=0, plots=False, project=f"{Path.cwd()}/runs", name="two", verbose=False
)
found = model.predict("data/images/val", imgsz=64, conf=0.0001, max_det=3, verbose=False)
done(losses=losses, fitness=float(metrics.fitness), boxes=[len(one.boxes) for one in found])
