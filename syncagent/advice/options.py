"""Options of libraries that avoid a wait, and lines of libraries that have none: data, a row for each.

Every row names where it is from.  Where an option came with a version, or a line went with one, the row says which, as
the published packages have it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from syncagent.advice.what import What


@dataclass(frozen=True)
class LibraryLine:
    """A line of a library that waits, and what can be done about it from outside."""

    library: str
    """The package, as it is imported."""
    file: str
    """A part of the file's path inside of the package; empty: any."""
    function: str = ""
    """A regular expression that the function's qualified name has to contain."""
    statement: str = ""
    """A regular expression that the text of the line has to contain."""
    option: str = ""
    """What to write; empty where there is nothing."""
    say: str = ""
    costs: str = ""
    """What it costs; empty where it is free."""
    advice: What = What.OPTION
    since: str = ""
    """The first version that has the option; empty: any that is in use."""
    source: str = ""
    asked_by: str = ""
    """A regular expression of how a program asks for it, where it has to ask."""
    often: str = ""
    """What to write where this happens in every step, if that is another thing."""

    @cached_property
    def _function(self) -> re.Pattern[str]:
        return re.compile(self.function)

    @cached_property
    def _statement(self) -> re.Pattern[str]:
        return re.compile(self.statement)

    def fits(self, package: str, file: str, function: str, statement: str) -> bool:
        """Return whether this is the line; a file or text that is not known fits nothing that asks for it."""
        return (
            package == self.library
            and self.file in file
            and bool(self._function.search(function))
            and bool(self._statement.search(statement))
        )

    def is_of(self, version: str) -> bool:
        """Return whether that version of the library has the option, or may have it."""
        return not version or _numbers(self.since) <= _numbers(version)

    def is_sure(self, version: str) -> bool:
        return bool(version) or not self.since

    @property
    def text(self) -> str:
        """What to do, in one sentence without a full stop."""
        said = f"{self.option}: {self.say}" if self.option and self.say else self.option or self.say
        return f"{said} ({self.costs})" if self.costs else said


def _numbers(version: str) -> tuple[int, ...]:
    """Return what a release is ordered by; of a release candidate, its release."""
    return tuple(map(int, re.findall(r"\d+", re.match(r"[\d.]*", version)[0])))  # type: ignore[index]  # fits any text


_HF = "huggingface/transformers: src/transformers/"
_TM = "Lightning-AI/torchmetrics: src/torchmetrics/"
_PL = "Lightning-AI/pytorch-lightning: src/lightning/"
_PT = "pytorch/pytorch: torch/"

LINES = (
    # --- transformers
    LibraryLine(
        "transformers", "trainer.py", "", r"logging_nan_inf_filter|is(nan|inf)\(tr_loss",
        "TrainingArguments(logging_nan_inf_filter=False)", "the loss of every micro step is not tested for NaN",
        "the logged loss may then be NaN", since="4.11", source=f"{_HF}trainer.py",
    ),
    LibraryLine(
        "transformers", "trainer.py", "", r"num_input_tokens_seen|gather\(.*tokens",
        "TrainingArguments(include_num_input_tokens_seen=False)", "tokens are not counted in every micro step",
        "count them in the collate function where they are needed", since="4.36",
        source=f"{_HF}trainer.py",
    ),
    LibraryLine(
        "transformers", "trainer.py", "_maybe_log|_report|evaluat|_save|log", r"\.item\(\)|nested_gather",
        say="the Trainer reads the loss only when it logs: a larger logging_steps makes that rarer", advice=What.RARE,
        source=f"{_HF}trainer.py",
    ),
    LibraryLine(
        "transformers", "modeling_utils.py", "warn_if_padding", "",
        "pass attention_mask=", "without one the model looks for pad tokens in the input",
        source=f"{_HF}modeling_utils.py",
    ),
    LibraryLine(
        "transformers", "",
        "_ignore_causal_mask_sdpa|_ignore_bidirectional|find_packed_sequence|is_fully_attended|packed", "",
        'attn_implementation="flash_attention_2", or no attention_mask where nothing is padded',
        "the mask is then not read to find out whether it is all ones or packed", since="4.36",
        source=f"{_HF}modeling_attn_mask_utils.py",
    ),
    LibraryLine(
        "transformers", "modeling_flash_attention_utils.py", "", "",
        "DataCollatorWithFlattening(return_flash_attn_kwargs=True)",
        "the collator hands over cu_seq_lens and max_length, so that no layer has to unpad", since="4.52",
        source=f"{_HF}modeling_flash_attention_utils.py",
    ),
    LibraryLine(
        "transformers", "generation/utils.py", "", r"finished|stopping|unfinished",
        say="generate() asks after each token whether all sequences are finished, and no option turns that off",
        advice=What.LEAVE, source=f"{_HF}generation/utils.py",
    ),
    LibraryLine(
        "transformers", "", "", r"isinf\(.*\)\.any\(\)|dtype == torch\.float16",
        "torch_dtype=torch.bfloat16", "the test for infinity in each block is made in float16 alone",
        source=f"{_HF}models/t5/modeling_t5.py",
    ),
    LibraryLine(
        "transformers", "", r"(Sparse)?MoE|Moe|Experts|Mixtral", "",
        say="each expert's tokens are found by nonzero, in every layer; newer versions choose fused experts "
        '(experts_implementation="grouped_mm")',
        advice=What.LEAVE, source=f"{_HF}models/mixtral/modeling_mixtral.py",
    ),
    # --- accelerate
    LibraryLine(
        "accelerate", "utils/operations.py", "send_to_device", "",
        'DataLoaderConfiguration(non_blocking=True), of a Trainer accelerator_config={"non_blocking": True}',
        "batches are copied without a wait, from a loader with pin_memory=True", since="0.30",
        source="huggingface/accelerate: src/accelerate/data_loader.py",
    ),
    # --- Lightning
    *(
        line
        for package in ("lightning", "pytorch_lightning")
        for line in (
            LibraryLine(
                package, "logger_connector/result.py", "", r"pbar",
                "self.log(..., prog_bar=False)", "what the progress bar shows is read at the end of every batch",
                source=f"{_PL}pytorch/trainer/connectors/logger_connector/result.py", asked_by=r"prog_bar\s*=\s*True",
            ),
            LibraryLine(
                package, "logger_connector/logger_connector.py", "log_metrics", "",
                "Trainer(log_every_n_steps=50) or more", "every logged tensor is read whenever the logger is called",
                asked_by=r"log_every_n_steps\s*=\s*\d\b",
                source=f"{_PL}pytorch/trainer/connectors/logger_connector/logger_connector.py",
            ),
            LibraryLine(
                package, "core/module.py", "__to_tensor", "",
                say="self.log() is given a number, which is copied to the GPU: give it the tensor",
                advice=What.CREATE_ON_DEVICE, source=f"{_PL}pytorch/core/module.py",
            ),
            LibraryLine(
                package, "callbacks/", "", "",
                say="a callback reads it, once in a validation or a checkpoint", advice=What.RARE,
                source=f"{_PL}pytorch/callbacks/early_stopping.py",
            ),
            LibraryLine(
                package, "", "detect_nan|check_finite", "",
                "Trainer(detect_anomaly=False)", "losses and gradients are not tested for NaN",
                source=f"{_PL}pytorch/trainer/trainer.py", asked_by=r"detect_anomaly\s*=\s*True",
            ),
        )
    ),
    *(
        line
        for package in ("lightning", "lightning_fabric")
        for line in (
            LibraryLine(
                package, "apply_func.py", "convert_tensors_to_scalars", "",
                say="logged tensors are read when the logger is called: a larger log_every_n_steps makes that rarer",
                often="self.log(..., prog_bar=False), and Trainer(log_every_n_steps=50) or more: what is logged is "
                "read for the progress bar and for the logger",
                asked_by=r"prog_bar\s*=\s*True", advice=What.RARE, source=f"{_PL}fabric/utilities/apply_func.py",
            ),
            LibraryLine(
                package, "apply_func.py", "batch_to|move_data", "",
                say="DataLoader(pin_memory=True): Lightning copies pinned batches without a wait", advice=What.PIN,
                source=f"{_PL}fabric/utilities/apply_func.py",
            ),
        )
    ),
    # --- torchmetrics
    LibraryLine(
        "torchmetrics", "", r"_tensor_validation|_validation\b", "",
        "validate_args=False", "the values of predictions and targets are not looked at",
        "wrong labels go unnoticed", source=f"{_TM}functional/classification/stat_scores.py",
    ),
    LibraryLine(
        "torchmetrics", "aggregation.py", "", r"nan",
        'nan_strategy="disable"', "values are not searched for NaN", "NaN then spoils the mean",
        since="1.7", source=f"{_TM}aggregation.py",
    ),
    LibraryLine(
        "torchmetrics", "", "_format", r"preds (>=|<=|>|<) |all\(|logits|sigmoid|normalize",
        "give the metric labels or probabilities as it wants them", "it asks on the host whether they are logits",
        source=f"{_TM}functional/classification/stat_scores.py",
    ),
    # --- torch.amp, torch.optim, torch.nn.utils
    LibraryLine(
        "torch", "amp/grad_scaler.py", "get_scale|state_dict", "",
        say="the scale is read to see whether a step was skipped: step the scheduler always, or train in bfloat16, "
        "which needs no scaler",
        advice=What.BRANCH, source=f"{_PT}amp/grad_scaler.py",
    ),
    LibraryLine(
        "torch", "amp/grad_scaler.py", "", "",
        "an optimizer with fused=True, or bfloat16 without a scaler",
        "the optimizer takes the scaler's flag on the GPU, so that the host does not read it",
        source=f"{_PT}amp/grad_scaler.py",
    ),
    LibraryLine(
        "torch", "nn/utils/clip_grad.py", "", "",
        "clip_grad_norm_(..., error_if_nonfinite=False)", "the norm is not read; check it every N steps",
        source=f"{_PT}nn/utils/clip_grad.py", asked_by=r"error_if_nonfinite\s*=\s*True",
    ),
    LibraryLine(
        "torch", "optim/_adafactor.py", "", "",
        say="Adafactor reads two norms of each parameter on the host, and no option turns that off", advice=What.LEAVE,
        source=f"{_PT}optim/_adafactor.py",
    ),
    LibraryLine(
        "torch", "optim/lbfgs.py", "", "",
        say="L-BFGS decides on the host: that is how the algorithm works", advice=What.LEAVE,
        source=f"{_PT}optim/lbfgs.py",
    ),
    LibraryLine(
        "torch", "optim/lr_scheduler.py", "ReduceLROnPlateau", "",
        say="ReduceLROnPlateau compares on the host: call it once an epoch, or every N steps with a mean",
        advice=What.RARE,
        source=f"{_PT}optim/lr_scheduler.py",
    ),
    LibraryLine(
        "torch", "optim/swa_utils.py", "", "",
        "AveragedModel(model) without device=", "the counter of updates stays on the host",
        source=f"{_PT}optim/swa_utils.py",
    ),
    LibraryLine(
        "torch", "optim/", "sparse_adam|SparseAdam", "",
        say="SparseAdam adds up the gradients of rows that are there twice, and no option turns that off",
        advice=What.LEAVE, source=f"{_PT}optim/_functional.py",
    ),
    LibraryLine(
        "torch", "optim/sgd.py", "", "",
        "fused=True, or a learning rate that is a number", "it is a tensor on the GPU, and read there",
        source=f"{_PT}optim/sgd.py",
    ),
    LibraryLine(
        "torch", "optim/asgd.py", "", r"as_tensor|new_(mus|etas)",
        "ASGD(..., capturable=True)", "its weights are then computed on the GPU, and not copied there in each step",
        source=f"{_PT}optim/asgd.py",
    ),
    *(
        LibraryLine(
            "torch", file, "", statement, f"{options}{more}", say, source=f"{_PT}optim/adam.py",
        )
        for file, options in (
            ("optim/adam.py", "fused=True or capturable=True"),
            ("optim/adagrad.py", "fused=True"),
            ("optim/", "capturable=True (of Adagrad fused=True)"),
        )
        for statement, more, say in (
            (
                r"\b(lr|step_size)\b", ", or a learning rate that is a number",
                "it is a tensor on the GPU, and read there",
            ),
            (
                "", "",
                'the step counters lie on the GPU; or leave state["step"] on the host, as load_state_dict does',
            ),
        )
    ),
    # --- torch.distributions, torch.nn
    LibraryLine(
        "torch", "distributions/multivariate_normal.py", "", "",
        "MultivariateNormal(mean, scale_tril=...)", "no Cholesky factor is taken and checked inside",
        source=f"{_PT}distributions/multivariate_normal.py",
    ),
    LibraryLine(
        "torch", "distributions/utils.py", "broadcast_all", "",
        say="it is given a number, which is copied to the GPU: give it a tensor, such as torch.ones_like(mean)",
        advice=What.CREATE_ON_DEVICE, source=f"{_PT}distributions/utils.py",
    ),
    LibraryLine(
        "torch", "distributions/", "", "",
        "validate_args=False, or Distribution.set_default_validate_args(False) for all",
        "arguments and samples are not checked",
        source=f"{_PT}distributions/distribution.py",
    ),
    LibraryLine(
        "torch", "nn/modules/transformer.py", "", "",
        "nn.TransformerEncoder(..., enable_nested_tensor=False)", "the padding mask is not checked",
        "padding is computed, too", source=f"{_PT}nn/modules/transformer.py",
    ),
    LibraryLine(
        "torch", "nn/utils/rnn.py", "", "",
        say="sort by length in the collate function, keep the lengths on the host, and pass enforce_sorted=True",
        advice=What.LOADER, source=f"{_PT}nn/utils/rnn.py",
    ),
    LibraryLine(
        "torch", "nn/modules/batchnorm.py", "", "",
        "BatchNorm with a momentum that is not None", "the counter of batches is not read in each forward",
        source=f"{_PT}nn/modules/batchnorm.py",
    ),
    LibraryLine(
        "torch", "nn/modules/_functions.py", "SyncBatchNorm", "",
        say="SyncBatchNorm leaves out ranks without data by a mask, and no option turns that off", advice=What.LEAVE,
        source=f"{_PT}nn/modules/_functions.py",
    ),
    LibraryLine(
        "torch", "nn/modules/adaptive.py", "", "",
        say="the targets are split into clusters by nonzero, and no option turns that off", advice=What.LEAVE,
        source=f"{_PT}nn/modules/adaptive.py",
    ),
    LibraryLine(
        "torch", "utils/tensorboard/", "", "",
        say="tensors are copied to the host for the log: collect loss.detach(), and write every N steps",
        advice=What.LOG_LATER, source=f"{_PT}utils/tensorboard/_convert_np.py",
    ),
    LibraryLine(
        "torch", "fsdp/_runtime_utils.py", "", r"synchronize",
        "FullyShardedDataParallel(..., limit_all_gathers=False)", "the host may run ahead", "takes more memory",
        source=f"{_PT}distributed/fsdp/_runtime_utils.py",
    ),
    LibraryLine(
        "torch", "reducer.cpp", "", "",
        "DistributedDataParallel(..., find_unused_parameters=False)",
        "the map of parameters that were used is not copied to the host in each backward pass",
        source="pytorch/pytorch: torch/csrc/distributed/c10d/reducer.cpp",
    ),
    LibraryLine(
        "torch", "autograd/engine.cpp", "", "",
        "set_detect_anomaly(False)", "the gradients of each node are not tested for NaN: only while you look for one",
        source="pytorch/pytorch: torch/csrc/autograd/engine.cpp",
    ),
    LibraryLine(
        "torch", "Onehot.cpp", "", "",
        "one_hot(..., num_classes=N)", "the largest class is not read",
        source="pytorch/pytorch: aten/src/ATen/native/Onehot.cpp",
    ),
    # --- others
    LibraryLine(
        "dgl", "", "", r"in_degrees\(\)|allow_zero_in_degree",
        "allow_zero_in_degree=True", "the degrees are not checked in each forward; add self-loops in the loader",
        source="dmlc/dgl: python/dgl/nn/pytorch/conv/graphconv.py",
    ),
    LibraryLine(
        "torch_geometric", "", "", r"batch\.max\(\)|index\.max\(\)|batch_size = |dim_size = ",
        "size=data.num_graphs (or batch_size=, dim_size=)", "the number of graphs is not read from the GPU",
        source="pyg-team/pytorch_geometric: torch_geometric/nn/aggr/base.py",
    ),
    LibraryLine(
        "torch_geometric", "", "", r"max_num_nodes",
        "max_num_nodes=N", "the largest graph is not looked for",
    source="pyg-team/pytorch_geometric: torch_geometric/utils/_to_dense_batch.py",
    ),
    LibraryLine(
        "detectron2", "engine/train_loop.py", "", "",
        "SimpleTrainer(..., async_write_metrics=True), or gather_metric_period=20",
        "the losses are not copied to the host in each iteration",
        source="facebookresearch/detectron2: detectron2/engine/train_loop.py",
    ),
    LibraryLine(
        "diffusers", "schedulers/", "", "",
        "scheduler.set_begin_index(0)", "the scheduler counts its steps instead of looking for the timestep",
        since="0.27",
        source="huggingface/diffusers: src/diffusers/schedulers/scheduling_euler_discrete.py",
    ),
    LibraryLine(
        "peft", "tuners/adalora/", "", "",
        "AdaLoraConfig(deltaT=10) or more", "ranks are allocated less often",
        source="huggingface/peft: src/peft/tuners/adalora/layer.py",
    ),
    LibraryLine(
        "ignite", "engine/", "", r"\.item\(\)",
        "create_supervised_trainer(..., output_transform=lambda x, y, y_pred, loss: loss.detach())",
        "the loss is not read in each iteration", source="pytorch/ignite: ignite/engine/__init__.py",
    ),
    LibraryLine(
        "timm", "data/mixup.py", "elem|pair", "",
        'Mixup(mode="batch")', "one number a batch is mixed by, and no tensor of them is copied to the GPU",
        source="huggingface/pytorch-image-models: timm/data/mixup.py",
    ),
    LibraryLine(
        "deepspeed", "", "", r"overflow|loss_scal",
        '"bf16": {"enabled": true} in place of fp16', "without a loss scale no flag is read",
        source="deepspeedai/DeepSpeed: deepspeed/runtime/zero/stage_1_and_2.py",
    ),
    LibraryLine(
        "torchvision", "models/detection/", "", "",
        say="sampling and suppression of boxes have sizes that depend on the data, and no option changes that",
        advice=What.LEAVE, source="pytorch/vision: torchvision/models/detection/rpn.py",
    ),
    LibraryLine(
        "torchvision", "ops/", "nms|boxes", "",
        say="how many boxes stay depends on them, and no option changes that", advice=What.LEAVE,
        source="pytorch/vision: torchvision/ops/boxes.py",
    ),
)  # fmt: skip


def find(package: str, file: str, function: str, statement: str, version: str = "") -> LibraryLine | None:
    """Return the row of a library's line, the first that fits; without a version, of any."""
    fitting = (line for line in LINES if line.is_of(version) and line.fits(package, file, function, statement))
    return next(fitting, None)


def libraries() -> Sequence[str]:
    return tuple(dict.fromkeys(line.library for line in LINES))
