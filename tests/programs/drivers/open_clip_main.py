"""open_clip's own training program on its synthetic data: a small RN50-like model, then zero-shot features."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from open_clip_train.main import main
from outcome import device, done, warm

Path("tiny.json").write_text(
    json.dumps(
        {
            "embed_dim": 64,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
        }
    )
)
open_clip.add_model_config("tiny.json")
words = (
    "--dataset-type synthetic --train-num-samples 32 --batch-size 8 --workers 0 --model tiny --warmup 1 --epochs 2 "
    f"--precision fp32 --log-every-n-steps 1 --logs logs --name run --seed 0 --device {device()}"
)
warm()
main(words.split())
kept = torch.load(next(Path("logs/run/checkpoints").glob("epoch_2.pt")), map_location="cpu", weights_only=False)
model, _, prepared = open_clip.create_model_and_transforms("tiny", device=device())
model.load_state_dict({key.removeprefix("module."): value for key, value in kept["state_dict"].items()})
model.eval()
with torch.no_grad():
    images = torch.nn.functional.normalize(model.encode_image(torch.rand(3, 3, 32, 32).to(device())), dim=-1)
    texts = torch.nn.functional.normalize(model.encode_text(torch.randint(1, 99, (3, 77)).to(device())), dim=-1)
    scores = (100.0 * images @ texts.T).softmax(-1)
done(model=model, scores=scores.cpu().flatten().tolist())
