"""The callbacks of Lightning and transformers and the tracker of accelerate, in real training runs of these libraries.

Skipped where a library is missing; ``nox -s trainers`` runs them with the oldest and the newest supported versions.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from importlib.util import find_spec

import pytest

from tests import processes

PAGE = processes.ROOT / "docs" / "trainers.md"

LIGHTNING = """
import hashlib, sys
import torch
if "pytorch_lightning" in sys.argv:
    import pytorch_lightning as L
    from pytorch_lightning import loggers
else:
    import lightning.pytorch as L
    from lightning.pytorch import loggers

class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    def training_step(self, batch, index):
        loss = torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        loss.item()
        return loss
    def validation_step(self, batch, index):
        for _ in range(10):
            self.layers(batch[0]).sum().item()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.rand(96, 4), torch.randint(0, 2, (96,)))
data = torch.utils.data.DataLoader(data, batch_size=8)
chosen = {
    "csv": lambda: loggers.CSVLogger("out", name="csv", version=0),
    "tensorboard": lambda: loggers.TensorBoardLogger("out"),
    "wandb": lambda: loggers.WandbLogger(project="fit", offline=True),
    "mlflow": lambda: loggers.MLFlowLogger(tracking_uri="file:./mlruns"),
}
class Broken(loggers.CSVLogger):
    def log_metrics(self, metrics, step=None):
        if "syncs/step" in metrics:
            raise RuntimeError("a disk is full")
        super().log_metrics(metrics, step)
chosen["broken"] = lambda: Broken("out", name="broken")
class Own(loggers.Logger if hasattr(loggers, "Logger") else loggers.logger.Logger):
    name, version = "own", 0
    def log_hyperparams(self, *args, **kwargs): ...
    def log_metrics(self, metrics, step=None):
        if "syncs/step" in metrics:
            print("logged", step, metrics["syncs/step"])
chosen["own"] = Own
callbacks = []
if "watched" in sys.argv:
    from syncagent.integrations.lightning import HostSyncCallback
    callbacks = [HostSyncCallback(report="own.json", detail="syncs")]
trainer = L.Trainer(
    max_epochs=2, accelerator="gpu", devices=1, accumulate_grad_batches=2, log_every_n_steps=3, callbacks=callbacks,
    logger=[make() for name, make in chosen.items() if name in sys.argv], enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
model = Model()
trainer.fit(model, data, data)
weights = b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
print("trained", trainer.global_step, hashlib.sha256(weights).hexdigest())
import syncagent
print("watched", syncagent.current() is not None)
"""
"""Two syncs in each of twelve steps; 20 syncs of the sanity check and 240 of the validation are in no step."""

TRANSFORMERS = """
import hashlib, sys
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

rows = torch.randint(0, 50, (64, 16), generator=torch.Generator().manual_seed(0))
class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return len(rows)
    def __getitem__(self, index):
        return {"input_ids": rows[index], "labels": rows[index]}
class Own(Trainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        found = super().compute_loss(model, inputs, *args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        for _ in range(0 if model.training else 50):
            loss.item()
        return found
class Seen(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = ("syncs/step", "eval_loss", "syncagent/eval/syncs")
        print("logged", {name: value for name, value in logs.items() if name in shown})
class Broken(TrainerCallback):
    tb_writer = 1
    def on_log(self, *args, **kwargs): ...
Broken.__name__ = "TensorBoardCallback"

torch.manual_seed(0)
config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
arguments = TrainingArguments(
    output_dir="out", per_device_train_batch_size=4, per_device_eval_batch_size=8, num_train_epochs=2, logging_steps=4,
    gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=6,
    logging_nan_inf_filter=False, disable_tqdm=True,
    report_to=[name for name in ("tensorboard", "wandb", "mlflow") if name in sys.argv] or "none",
)
callbacks = [Seen()]
if "watched" in sys.argv:
    from syncagent.integrations.transformers import HostSyncCallback
    callbacks += [HostSyncCallback(report="own.json", detail="syncs")]
if "broken" in sys.argv:
    callbacks += [Broken()]
trainer = Own(
    model=GPT2LMHeadModel(config), args=arguments, train_dataset=Tokens(), eval_dataset=Tokens(), callbacks=callbacks
)
trainer.train()
weights = b"".join(p.detach().cpu().numpy().tobytes() for p in trainer.model.parameters())
print("trained", trainer.state.global_step, hashlib.sha256(weights).hexdigest())
import syncagent
print("watched", syncagent.current() is not None)
"""

ACCELERATE = """
import hashlib, sys
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

class Broken(GeneralTracker):
    name, requires_logging_directory, tracker = "broken", False, None
    def log(self, values, step=None, **kwargs):
        if "syncs/step" in values:
            raise RuntimeError("a disk is full")
class Seen(Broken):
    name = "seen"
    def log(self, values, step=None, **kwargs):
        print("logged", step, values)

trackers = [name for name in ("tensorboard", "wandb", "mlflow") if name in sys.argv] + [Seen()]
if "broken" in sys.argv:
    trackers.append(Broken())
if "watched" in sys.argv:
    from syncagent.integrations.accelerate import HostSyncTracker
    host_syncs = HostSyncTracker(report="own.json", detail="syncs")
    trackers.append(host_syncs)
accelerator = Accelerator(log_with=trackers, project_dir="out", gradient_accumulation_steps=2)
accelerator.init_trackers("run")
torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.rand(96, 4), torch.randint(0, 2, (96,)))
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
model, optimizer = accelerator.prepare(model, optimizer)
data = [each.cuda() for pair in torch.utils.data.DataLoader(data, batch_size=8) for each in pair]

def evaluate():
    for x in data[::2]:
        for _ in range(10):
            model(x).sum().item()

step = 0
for epoch in range(2):
    for x, y in zip(data[::2], data[1::2]):
        with accelerator.accumulate(model):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.item()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
            if step % 3 == 0:
                accelerator.log({"epoch": epoch}, step=step)
    if "watched" in sys.argv:
        with host_syncs.evaluation():
            evaluate()
    else:
        evaluate()
accelerator.end_training()
weights = b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
print("trained", step, hashlib.sha256(weights).hexdigest())
import syncagent
print("watched", syncagent.current() is not None)
"""

BOTH = """
import lightning.pytorch, pytorch_lightning, torch
import syncagent
from syncagent.integrations.lightning import HostSyncCallback

for package in (lightning.pytorch, pytorch_lightning):
    class Gan(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.parts = torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        def training_step(self, batch, index):
            for part, optimizer in zip(self.parts, self.optimizers()):
                optimizer.zero_grad()
                self.manual_backward(part(batch[0]).sum())
                optimizer.step()
        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.parts]

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(80, 4)), batch_size=8)
    trainer = package.Trainer(
        max_epochs=1, accelerator="gpu", devices=1, callbacks=HostSyncCallback(), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Gan(), data)
    print("trained", trainer.global_step, syncagent.current().steps.count)
"""

PROGRAMS = {
    "lightning": LIGHTNING,
    "pytorch_lightning": LIGHTNING,
    "transformers": TRANSFORMERS,
    "accelerate": ACCELERATE,
}
STEPS = {"lightning": 12, "pytorch_lightning": 12, "transformers": 16, "accelerate": 12}
PER_STEP = {
    # Lightning and transformers read what they log every third or fourth step, after the callbacks of that step.
    "lightning": [(2, 2.0), (5, 2.0), (8, 2.0), (11, 2.0)],
    "pytorch_lightning": [(2, 2.0), (5, 2.0), (8, 2.0), (11, 2.0)],
    "accelerate": [(3, 2.0), (6, 2.0), (9, 2.0), (12, 2.0)],
}
LOGGERS = ("tensorboard", "wandb", "mlflow")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def done_before():
    """Runs that several tests look at."""
    return {}


@pytest.fixture
def train(tmp_path_factory, done_before):
    """``train(library, *words)`` runs the library's program, once, and returns what it left and printed."""

    def run(library, *words, code=None, ranks=1, **variables):
        needed = {library, *(word for word in words if word in LOGGERS)}
        needed |= {"accelerate"} if library == "transformers" else set()
        for name in sorted(needed):
            if find_spec(name) is None:
                pytest.skip(f"{name} is not installed")
        key = library, words, code, ranks, *sorted(variables.items())
        if key not in done_before:
            folder = tmp_path_factory.mktemp("train")
            (folder / "train.py").write_text(PROGRAMS[library] if code is None else code, encoding="utf-8")
            (folder / "run.py").write_text(RUN, encoding="utf-8")
            launcher = ("-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", ranks)
            launcher += ("--master-port", processes.free_port()) if ranks > 1 else ()
            ran = processes.run(
                *(launcher if ranks > 1 else ()), "run.py", "train.py", library, *words,
                cwd=folder, timeout=280, **VARIABLES, **variables,
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr[-4000:]
            done_before[key] = Done(ran, folder)
        return done_before[key]

    return run


RUN = """
import runpy, sys
from syncagent.runtime import autostart
autostart.begin()
sys.argv = sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""
VARIABLES = {
    "SYNCAGENT_SIMULATE": "1", "SYNCAGENT_CAPTURE": "off", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline",
    "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": "file:./mlruns", "MLFLOW_ALLOW_FILE_STORE": "true",
    "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(processes.ROOT),
}  # fmt: skip


class Done:
    def __init__(self, done, folder):
        self.folder = folder
        self.err = done.stderr
        lines = [line.partition(" ") for line in done.stdout.splitlines()]
        self.all_trained = [rest for word, _, rest in lines if word == "trained"]
        self.trained = next(iter(self.all_trained), None)
        self.is_watched = next((rest == "True" for word, _, rest in lines if word == "watched"), None)
        self.logged = [rest for word, _, rest in lines if word == "logged"]

    @property
    def report(self):
        return json.loads((self.folder / "own.json").read_text(encoding="utf-8"))

    def complaints(self):
        return [line for line in self.err.splitlines() if line.startswith("[syncagent]") and " info " not in line]


def scalars(folder, tag, under="out"):
    """Steps and values of a scalar in TensorBoard's files, and the texts of a summary of text."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for file in sorted(folder.glob(f"{under}/**/*tfevents*")):
        events = EventAccumulator(str(file))
        events.Reload()
        found += [(each.step, each.value) for name in events.Tags()["scalars"] if name.endswith(tag)
                  for each in events.Scalars(name)]  # fmt: skip
        found += [(each.step, each.tensor_proto.string_val[0].decode()) for name in events.Tags()["tensors"]
                  if name.startswith(tag) for each in events.Tensors(name)]  # fmt: skip
    return found


def rounded(pairs):
    return [(step, pytest.approx(value, abs=1e-3)) for step, value in pairs]


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", PROGRAMS)
def test_it_changes_nothing_in_training_and_ends_the_agent_that_it_began(train, library):
    """Weights are the same to the bit; the report has the steps of the optimizer, whatever the accumulation."""
    alone, watched = train(library), train(library, "watched")
    assert watched.trained == alone.trained is not None
    assert int(watched.trained.split()[0]) == watched.report["run"]["steps"] == STEPS[library]
    assert (alone.is_watched, watched.is_watched) == (False, False)
    assert watched.complaints() == []


@pytest.mark.parametrize("library", ["lightning", "transformers", "accelerate"])
def test_in_a_job_of_two_ranks_each_has_a_report_and_the_first_one_logs(train, library):
    code = PROGRAMS[library].replace("devices=1", "devices=2").replace("own.json", "own/")
    done = train(library, "watched", *(["csv"] if library == "lightning" else ()), code=code, ranks=2)
    assert len(set(done.all_trained)) == 1  # the same weights
    ranks = [json.loads(file.read_text(encoding="utf-8"))["run"] for file in (done.folder / "own").glob("*.json")]
    assert sorted((run["rank"], run["world_size"]) for run in ranks) == [(0, 2), (1, 2)]
    assert len({run["steps"] for run in ranks}) == 1
    assert ranks[0]["steps"] > 0
    assert done.complaints() == []
    if library == "lightning":
        with (done.folder / "out/csv/version_0/metrics.csv").open() as stream:
            steps = [int(row["step"]) for row in csv.DictReader(stream) if row["syncs/step"]]
        assert steps == sorted(set(steps)) != []
    else:
        assert sum("syncs/step" in each for each in done.logged) > 0


@pytest.mark.parametrize("library", PROGRAMS)
def test_an_agent_that_is_running_is_joined_and_goes_on(train, library):
    done = train(library, "watched", SYNCAGENT="1", SYNCAGENT_DETAIL="syncs", SYNCAGENT_REPORT="own.json")
    assert done.is_watched
    assert done.report["run"]["steps"] == STEPS[library]


@pytest.mark.parametrize("library", PROGRAMS)
def test_a_fault_is_logged_once_and_training_goes_on(train, library):
    done = train(library, "watched", "broken")
    [complaint] = done.complaints()
    assert re.search(r"HostSync\w+ failed and is off; training goes on", complaint)
    assert int(done.trained.split()[0]) == STEPS[library]
    assert not done.is_watched


@pytest.mark.parametrize("library", PROGRAMS)
def test_tensorboard_has_the_numbers_and_the_worst_line_as_text(train, library):
    done = train(library, "watched", *LOGGERS)
    stalls, texts = scalars(done.folder, "stall_ms/step"), scalars(done.folder, "worst_sync_site")
    seen = scalars(done.folder, "syncs/step")
    if library in PER_STEP:
        assert rounded(PER_STEP[library]) == seen
    assert len(stalls) == len(seen) == 4
    assert all(value > 0 for _, value in stalls)
    assert [step for step, _ in texts] == [step for step, _ in seen]
    assert all(re.match(r"train\.py:\d+: .* stalls a step for .* \(simulated device\)$", text) for _, text in texts)


@pytest.mark.parametrize("library", PROGRAMS)
def test_weights_and_biases_has_both(train, library):
    """Its file of a run that is offline is read as bytes."""
    done = train(library, "watched", *LOGGERS)
    [file] = done.folder.glob("**/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name in (b"syncs/step", b"stall_ms/step", b"worst_sync_site", b"stalls a step for"):
        assert name in content


@pytest.mark.parametrize("library", PROGRAMS)
def test_mlflow_has_the_numbers_and_the_worst_line_as_a_tag(train, library):
    done = train(library, "watched", *LOGGERS)
    [numbers] = done.folder.glob("mlruns/*/*/metrics/syncs/step")
    found = [(int(step), float(value)) for _, value, step, *_ in map(str.split, numbers.read_text().splitlines())]
    if library in PER_STEP:
        assert rounded(PER_STEP[library]) == found
    assert len(found) == 4
    [tag] = done.folder.glob("mlruns/*/*/tags/worst_sync_site")
    assert "stalls a step for" in tag.read_text()


# --- each -------------------------------------------------------------------------------------------------------------


def test_lightnings_points_are_at_the_steps_of_its_own_and_the_worst_line_is_in_the_log(train):
    done = train("lightning", "watched", "csv", "own")
    with (done.folder / "out/csv/version_0/metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["syncs/step"]]
    assert [(int(row["step"]), int(row["epoch"])) for row in rows] == [(2, 0), (5, 0), (8, 1), (11, 1)]
    assert rounded(PER_STEP["lightning"]) == [(int(row["step"]), float(row["syncs/step"])) for row in rows]
    with (done.folder / "out/csv/version_0/metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["syncagent/eval/syncs"]]
    found = [(int(row["step"]), int(row["epoch"]), float(row["syncagent/eval/syncs"])) for row in rows]
    assert found == [(5, 0, 120.0), (11, 1, 120.0)]
    assert all(float(row["syncagent/eval/stall_ms"]) > 0 for row in rows)
    assert "worst_sync_site: train.py:" in done.err
    assert done.logged == ["2 2.0", "5 2.0", "8 2.0", "11 2.0"]  # of a logger with no more than Lightning asks for
    assert not done.complaints()


def test_one_callback_is_for_both_packages_and_a_batch_in_which_two_optimizers_step_is_one_step(train):
    if find_spec("pytorch_lightning") is None:
        pytest.skip("pytorch_lightning is not installed")
    done = train("lightning", code=BOTH, SYNCAGENT="1")
    assert done.all_trained == ["20 10", "20 20"]


def test_transformers_adds_them_to_what_the_trainer_logs_of_training_and_an_evaluation_is_in_no_step(train):
    """50 reads of each of 8 batches of an evaluation would be 100 more a step."""
    done = train("transformers", "watched")
    logged = [ast.literal_eval(each) for each in done.logged]
    assert [sorted(each) for each in logged] == [["syncs/step"], ["eval_loss", "syncagent/eval/syncs"]] * 4 + [[]]
    assert all(400 <= each["syncagent/eval/syncs"] < 500 for each in logged[1::2])
    assert all(0 < each["syncs/step"] < 20 for each in logged[::2][:4])


def test_accelerates_other_trackers_get_them_and_the_users_own_values_as_they_are(train):
    done = train("accelerate", "watched")
    found = [(int(step), ast.literal_eval(values)) for step, _, values in (each.partition(" ") for each in done.logged)]
    assert [(step, values) for step, values in found if "epoch" in values] == [
        (3, {"epoch": 0}), (6, {"epoch": 0}), (9, {"epoch": 1}), (12, {"epoch": 1}),
    ]  # fmt: skip
    evaluations = [(step, values) for step, values in found if "syncagent/eval/syncs" in values]
    assert [(step, values["syncagent/eval/syncs"]) for step, values in evaluations] == [(6, 120.0), (12, 120.0)]
    assert all(values["syncagent/eval/stall_ms"] > 0 for _, values in evaluations)
    added = [pair for pair in found if "epoch" not in pair[1] and pair not in evaluations]
    assert [sorted(values) for _, values in added] == [["stall_ms/step", "syncs/step"]] * 4
    assert rounded(PER_STEP["accelerate"]) == [(step, values["syncs/step"]) for step, values in added]


# --- the documentation ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PAGE.exists(), reason="needs the checkout")
@pytest.mark.parametrize(
    ("library", "file"), [("lightning", "fit.py"), ("transformers", "finetune.py"), ("accelerate", "loop.py")]
)
def test_the_programs_of_the_page_run(train, library, file):
    """With the default settings, under which steps are sampled."""
    text = PAGE.read_text(encoding="utf-8")
    code = re.search(rf'(?ms)^```python title="{re.escape(file)}"\n(.*?)^```$', text)[1]
    words = ("tensorboard",) if library == "accelerate" else ()
    done = train(library, *words, code=code, SYNCAGENT="1", SYNCAGENT_REPORT="own.json")
    assert done.report["run"]["steps"] == {"fit.py": 32, "finetune.py": 16, "loop.py": 32}[file]
    assert done.complaints() == []
    if library == "lightning":
        with (done.folder / "logs/fit/version_0/metrics.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert len([row for row in rows if row["syncs/step"]]) == 8
