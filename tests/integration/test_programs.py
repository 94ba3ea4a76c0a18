"""Training programs of other libraries, as users write them, on the simulated device; skipped without the library."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

TRAINER = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

rows = torch.randint(0, 50, (32, 16), generator=torch.Generator().manual_seed(0))

class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return len(rows)
    def __getitem__(self, index):
        return {"input_ids": rows[index], "labels": rows[index]}

torch.manual_seed(0)
config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
arguments = TrainingArguments(
    output_dir="out", per_device_train_batch_size=8, per_device_eval_batch_size=8, max_steps=4, logging_steps=2,
    eval_strategy="steps", eval_steps=2, report_to="none", save_strategy="no", disable_tqdm=True,
)
trainer = Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=Tokens(), eval_dataset=Tokens())
result = trainer.train()
print(next(trainer.model.parameters()).device, result.global_step, result.training_loss < 5)
"""

LIGHTNING = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import lightning as L

class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self.layers(x), y)
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

torch.manual_seed(0)
data = DataLoader(TensorDataset(torch.rand(32, 4), torch.randint(0, 2, (32,))), batch_size=8)
trainer = L.Trainer(
    max_epochs=1, accelerator="gpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)
model = Model()
before = [p.clone() for p in model.parameters()]
trainer.fit(model, data)
print(trainer.strategy.root_device, trainer.global_step, all(
    not torch.equal(old, new.detach().cpu()) for old, new in zip(before, model.parameters())
))
"""


@pytest.mark.parametrize(
    ("library", "program", "printed"),
    [("transformers", TRAINER, "cuda:0 4 True"), ("lightning", LIGHTNING, "cuda:0 4 True")],
)
@pytest.mark.timeout(300)
def test_it_trains_on_the_simulated_device_and_its_syncs_are_in_the_report(python, tmp_path, library, program, printed):
    if find_spec(library) is None or (library == "transformers" and find_spec("accelerate") is None):
        pytest.skip(f"{library} is not installed")
    (tmp_path / "train.py").write_text(program)
    words = ("-m", "syncagent", "run", "--simulate", "--report", "seen.json", "train.py")
    done = python(*words, timeout=280, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == printed
    report = json.loads((tmp_path / "seen.json").read_text())
    assert report["run"]["steps"] == 4
    assert report["run"]["simulated"]
    assert {"copy_h2d", "scalar_read"} <= {site["kind"] for site in report["sites"]}
