"""Allow-packs: places where common libraries wait for the GPU by design, and why that is fine.

An entry is in a pack when its user cannot remove the sync without changing the library, or when it happens rarely by
design: at a checkpoint, a log line, an evaluation, once at the start.  What an option of the library turns off is left
out, since finding that is what the agent is for:

- ``torch``: ``ASGD`` (``capturable=True``), printing and formatting of tensors, ``GradScaler.get_scale()`` in a loop, a
  mask without ``is_causal``, the argument validation of distributions (``validate_args=False``).
- ``transformers``: the NaN filter of the loss (``logging_nan_inf_filter=False``), the search for packed sequences (give
  an attention mask), counting tokens (``include_num_input_tokens_seen``), unpadding for flash attention (collate
  without padding).
- ``accelerate``: copies of batches (``non_blocking=True`` and pinned memory), ``accelerator.log()`` in every step.
- ``lightning``: ``prog_bar=True`` reads its value in every step, whatever the bar's refresh rate; ``self.log()`` of a
  Python number copies it to the GPU.
- ``torchmetrics``: validation (``validate_args=False``), the NaN check of aggregators (``nan_strategy="disable"``).

An entry matches any line of a sync, the library's as well as the user's, and so everything that the function calls up
to the user's own code.  That is why no entry names a function that runs the model, but for evaluation.

Each entry was found by reading the sources of the versions in :data:`CHECKED`, and ``tests/unit/policy/test_packs.py``
looks each module and function up in the source that is installed.  A distribution adds a pack of its own through the
entry-point group ``syncagent.allow_packs``: an iterable of ``(where, reason)`` pairs, or a callable that returns one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, NamedTuple

from syncagent.errors import ConfigError

GROUP = "syncagent.allow_packs"
"""The entry-point group of packs that other distributions bring."""

CHECKED: Mapping[str, str] = MappingProxyType(
    {
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "accelerate": "1.15.0",
        "lightning": "2.6.6",
        "pytorch-lightning": "2.6.6",
        "torchmetrics": "1.9.0",
    }
)
"""The version of each distribution that the entries were checked against."""


class Allowance(NamedTuple):
    """One place in a library where syncs are fine."""

    where: str
    """``package.module`` (all below it) or ``package.module:function``, the function by its qualified name."""
    reason: str
    since: str = ""
    """The version of the library that brought the function, where older ones do without."""
    until: str = ""
    """The version that no longer has it."""

    def is_of(self, version: str) -> bool:
        """Whether that version of the library should have the function."""
        here = _numbers(version)
        return not (self.since and here < _numbers(self.since)) and not (self.until and here >= _numbers(self.until))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


_WHERE = re.compile(r"{name}(\.{name})*(:{part}(\.{part})*)?".format(name=r"[^\W\d]\w*", part=r"([^\W\d]\w*|<\w+>)"))

_TABLES = {
    "torch": """
torch.amp.grad_scaler:GradScaler._maybe_opt_step
    whether a gradient overflowed decides on the host whether the optimizer steps: one read per step, none
    with fused=True.
torch.amp.grad_scaler:GradScaler.state_dict
    the scale is read when a checkpoint is made.
torch.optim.lbfgs:LBFGS.step
    the line search compares losses on the host to choose the step length.
torch.optim._adafactor:_single_tensor_adafactor
torch.optim._adafactor:_multi_tensor_adafactor
    Adafactor scales each update by norms that it reads on the host.
torch.optim._functional:sparse_adam
    only the GPU knows how many rows are left once duplicate rows of a sparse gradient are summed.
torch.optim.lr_scheduler:ReduceLROnPlateau.step
    the scheduler compares its metric on the host, once per epoch.
torch.optim.swa_utils:AveragedModel.update_parameters
    the average reads its counter to see whether this is the first update.
torch.optim.optimizer:Optimizer.load_state_dict
torch.nn.modules.module:Module.load_state_dict
    loading a checkpoint copies it to the GPU.
torch.nn.utils.clip_grad:_get_total_norm
    error_if_nonfinite=True reads the norm on the host, once per step; without it nothing is read.
torch.nn.utils.rnn:pack_padded_sequence
    the order of the sequences is computed on the host, where their lengths have to be, and copied to the GPU.
torch.nn.utils.rnn:pad_packed_sequence
    the order of the sequences is copied back to the host, where their lengths are.
torch.nn.modules.adaptive:AdaptiveLogSoftmaxWithLoss.forward
    the rows of each cluster are chosen by a mask, and only the GPU knows how many there are.
torch.serialization:save
    a file is written by the host, so a checkpoint has to be copied there.
torch.serialization:load
    loading a checkpoint copies it to the GPU.
torch.autograd.profiler:profile.__exit__
    the profiler waits for the kernels that it recorded, once per trace.
torch.cuda.graphs:graph.__enter__
torch.cuda.graphs:make_graphed_callables
    a capture begins with an idle GPU, once per graph.
torch._inductor.runtime.benchmarking
    the compiler times its candidates while it compiles, not afterwards.
""",
    "torch.distributed": """
torch.distributed.distributed_c10d:all_gather_object
torch.distributed.distributed_c10d:gather_object
torch.distributed.distributed_c10d:broadcast_object_list
torch.distributed.distributed_c10d:scatter_object_list
torch.distributed.distributed_c10d:send_object_list
torch.distributed.distributed_c10d:recv_object_list
    the size of a pickled object must be known on the host to make room for it.
torch.distributed.utils:_verify_param_shape_across_processes
    ranks compare shapes once, when wrapped.
torch.distributed.utils:_sync_module_states
    rank 0 sends its parameters once, when wrapped.
torch.nn.modules._functions:SyncBatchNorm.forward
    ranks with an empty batch are dropped by a mask, once per layer; no option avoids it.
torch.nn.parallel.distributed:DistributedDataParallel._check_global_requires_backward_grad_sync
    with uneven inputs (join) the ranks agree in each step on whether they still synchronize.
torch.nn.parallel.distributed:DistributedDataParallel._find_common_rank
    with uneven inputs (join) the ranks agree on one that has the newest parameters.
torch.distributed.algorithms.join:Join._get_num_nonjoined_procs
    with uneven inputs (join) a rank without data asks how many others still have some.
torch.distributed.algorithms.join:Join.notify_join_context
    with uneven inputs (join) the ranks agree in each step on whether one of them stopped.
torch.distributed.algorithms.model_averaging.utils:average_parameters
    parameters are averaged every few steps, while no other collective may be running.
torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook:powerSGD_hook.<locals>.decompress
torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook:batched_powerSGD_hook.<locals>.decompress
    the hook waits for a bucket that it has decompressed; no option avoids it.
torch.distributed.fsdp._exec_order_utils:_ExecOrderData._check_order
    in the first iteration the ranks compare the order in which they gather parameters.
torch.distributed.fsdp._runtime_utils:_unshard
    the rate limiter holds the host back so that gathered parameters do not fill the memory.
torch.distributed.fsdp._runtime_utils:_post_backward_final_callback
torch.distributed.fsdp.fully_sharded_data_parallel:FullyShardedDataParallel.clip_grad_norm_
torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup.finalize_backward
torch.distributed.fsdp._fully_shard._fsdp_param:FSDPParam._init_sharded_param
torch.distributed.fsdp._fully_shard._fsdp_param:FSDPParam.reset_sharded_param
    parameters that are kept on the host need their gradients there before they step; only when offloading.
torch.distributed.fsdp._unshard_param_utils:_unshard_fsdp_state_params
    whole parameters are summoned for a checkpoint or an export, after the GPU is done with the shards.
torch.distributed.fsdp._state_dict_utils
torch.distributed.fsdp._optim_utils
torch.distributed._state_dict_utils
torch.distributed.checkpoint
torch.distributed.optim.zero_redundancy_optimizer:ZeroRedundancyOptimizer.consolidate_state_dict
    the state is gathered and copied to the host for a checkpoint.
torch.distributed.pipelining.schedules:_PipelineSchedule._warmup_p2p  until 2.15
torch.distributed.pipelining.schedules:_PipelineSchedule._initialize_pipeline_distributed_state  since 2.15
    stages agree on how they exchange tensors, before the first step.
""",
    "transformers": """
transformers.trainer:Trainer._maybe_log_save_evaluate
    losses are logged, checkpoints saved and evaluations run every logging_steps, save_steps and eval_steps.
transformers.trainer:Trainer._get_num_items_in_batch
    the number of labels in a batch is counted on the host and copied to the GPU: one number per step.
transformers.trainer:Trainer._finalize_training
    the last losses are read when training is over.
transformers.trainer:Trainer.evaluation_loop
    an evaluation copies its predictions to the host every eval_steps; waits of the model inside it pass as well.
transformers.trainer:Trainer.save_model
transformers.trainer:Trainer._save_checkpoint
transformers.modeling_utils:PreTrainedModel.save_pretrained
    the state is gathered and copied to the host for a checkpoint.
transformers.generation.utils:GenerationMixin._has_unfinished_sequences
    each new token may be the last, so the host has to look whether to stop.
transformers.optimization:Adafactor.step
    Adafactor compares the size of each parameter with a bound on the host.
""",
    "accelerate": """
accelerate.accelerator:Accelerator.check_trigger
    all ranks have to learn whether one of them stops.
accelerate.accelerator:Accelerator.save_state
    the state is gathered and copied to the host for a checkpoint.
accelerate.accelerator:Accelerator.load_state
    loading a checkpoint copies it to the GPU.
accelerate.accelerator:Accelerator.save_model
accelerate.accelerator:Accelerator.get_state_dict
    the state is gathered and copied to the host for a checkpoint.
accelerate.utils.operations:gather_object
accelerate.utils.operations:broadcast_object_list
    the size of a pickled object must be known on the host to make room for it.
accelerate.utils.operations:pad_across_processes
    the ranks compare shapes on the host before they gather tensors of different size, as evaluations do.
accelerate.utils.random:synchronize_rng_states
    the ranks synchronize their random state, once per epoch.
accelerate.utils.deepspeed:DeepSpeedEngineWrapper.get_global_grad_norm
    DeepSpeed returns the norm that it clipped by as a number: one read per step.
""",
    "lightning": """
lightning.pytorch.trainer.connectors.logger_connector.logger_connector:_LoggerConnector.log_metrics
    loggers get numbers, every log_every_n_steps.
lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop._broadcast_sigterm_tensor
    with several ranks each step checks whether one of them got SIGTERM; no option avoids it.
lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop.teardown
    results go to the host after training.
lightning.pytorch.loops.evaluation_loop:_EvaluationLoop._print_results
    results are printed after an evaluation.
lightning.pytorch.loops.evaluation_loop:_EvaluationLoop.teardown
    results go to the host after an evaluation.
lightning.pytorch.trainer.trainer:Trainer.save_checkpoint
    the state is gathered and copied to the host for a checkpoint.
lightning.pytorch.callbacks.model_checkpoint:ModelCheckpoint._save_topk_checkpoint
    the watched metric is compared with the best ones when a checkpoint is due.
lightning.pytorch.callbacks.model_checkpoint:ModelCheckpoint._save_last_checkpoint
    the watched metric becomes part of a file's name when a checkpoint is due.
lightning.pytorch.callbacks.early_stopping:EarlyStopping._run_early_stopping_check
    the watched metric is compared with the best one, after each validation.
lightning.pytorch.tuner.lr_finder:_LRCallback.on_train_batch_end
    the search for a learning rate follows the loss, in a short run before training.
lightning.pytorch.tuner.lr_finder:_LRFinder.suggestion
    the search for a learning rate ends with the losses on the host.
lightning.pytorch.utilities.data:has_len_all_ranks
    the ranks add up the lengths of their loaders, once per loader.
lightning.pytorch.strategies.strategy:Strategy.teardown
    the model goes back to the host after training.
lightning.pytorch.strategies.ddp:DDPStrategy.broadcast
lightning.pytorch.strategies.fsdp:FSDPStrategy.broadcast
lightning.pytorch.strategies.model_parallel:ModelParallelStrategy.broadcast
lightning.fabric.strategies.ddp:DDPStrategy.broadcast
lightning.fabric.strategies.fsdp:FSDPStrategy.broadcast
lightning.fabric.strategies.model_parallel:ModelParallelStrategy.broadcast
    the size of a pickled object must be known on the host to make room for it.
lightning.fabric.utilities.distributed:_gather_all_tensors
    the ranks compare shapes on the host before they gather tensors of different size.
lightning.fabric.accelerators.cuda:_clear_cuda_memory
    memory is freed before training and after it.
lightning.fabric.fabric:Fabric.save
    the state is gathered and copied to the host for a checkpoint.
""",
    "torchmetrics": """
torchmetrics.metric:Metric._wrap_compute.<locals>.wrapped_func
    a metric's value may need its states on the host: update() in the loop, compute() at the end of an epoch.
torchmetrics.utilities.data:_bincount
    torch.bincount reads the range of its input on the host, and metrics that count have no other way.
torchmetrics.utilities.distributed:gather_all_tensors
    the ranks compare shapes on the host before they gather states, once per compute().
torchmetrics.collections:MetricCollection._merge_compute_groups
    after the first update metrics with equal states are found, once.
torchmetrics.wrappers.tracker:MetricTracker.best_metric
    the best value is read when asked for.
torchmetrics.utilities.plot
    a plot is drawn by the host.
""",
}
"""By pack: the places, and below them the reason why waiting there is fine."""

_SECOND_NAMES = (("lightning.pytorch.", "pytorch_lightning."), ("lightning.fabric.", "lightning_fabric."))
"""The same modules in the other distributions of the library."""


def _parse(table: str) -> Iterable[Allowance]:
    for places, reason in re.findall(r"((?:^\S.*\n)+)((?:^ .*\n)+)", table, re.MULTILINE):
        for place in places.splitlines():
            where, *bounds = place.split()  # "since" and "until" with the library's version, for a few
            versions = dict(zip(bounds[::2], bounds[1::2], strict=True))
            for name in (where, *(where.replace(*names, 1) for names in _SECOND_NAMES if where.startswith(names[0]))):
                yield Allowance(name, " ".join(reason.split()), **versions)


PACKS: Mapping[str, tuple[Allowance, ...]] = MappingProxyType(
    {name: tuple(_parse(table)) for name, table in _TABLES.items()}
)
"""The built-in packs.  None includes another: the Trainer of transformers goes through accelerate and torch."""


def names() -> tuple[str, ...]:
    """Return the names of all packs, the built-in ones first; those of other distributions are not loaded."""
    others = {entry_point.name for entry_point in entry_points(group=GROUP)}
    return (*PACKS, *sorted(others - set(PACKS)))


def pack(name: str) -> tuple[Allowance, ...]:
    """Return the entries of a pack.

    Raises :class:`~syncagent.errors.ConfigError` if there is none of that name, or if another distribution brings one
    that cannot be used.
    """
    if name in PACKS:
        return PACKS[name]
    for entry_point in entry_points(group=GROUP, name=name):
        try:
            return _entries(entry_point.load())
        except Exception as error:
            problem = str(error) or type(error).__name__
            raise ConfigError(
                f"syncagent: setting allow_packs is {name!r}, but the allow-pack {name!r} ({entry_point.value}) cannot "
                f"be used: {problem}"
            ) from error
    raise ConfigError(f"syncagent: setting allow_packs is {name!r}, but it must be one of {', '.join(names())}.")


def gone(names: Iterable[str]) -> list[str]:
    """Return a sentence for each entry of these built-in packs that the library in use has no function for.

    Only modules that the program has imported are checked: nothing can wait in the others.
    """
    sentences = []
    for name in names:
        for entry in PACKS.get(name, ()):
            module, _, function = entry.where.partition(":")
            found: Any = sys.modules.get(module)
            library = module.partition(".")[0]
            version = str(getattr(sys.modules.get(library), "__version__", ""))
            if found is None or not function or "<" in function or not entry.is_of(version):
                continue
            for part in function.split("."):
                found = getattr(found, part, None)
            if found is None:
                sentences.append(
                    f"{entry.where} is not in {library} {version}: if another function waits in its place, the pack "
                    f"{name} does not allow it"
                )
    return sentences


def _entries(found: Any) -> tuple[Allowance, ...]:
    """Check the entries that another distribution brings."""
    entries = []
    for item in found() if callable(found) else found:
        where, reason = item
        if not isinstance(where, str) or not _WHERE.fullmatch(where):
            raise ValueError(f"{where!r} is not package.module or package.module:function")
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"{where} has no reason")
        entries.append(Allowance(where, reason))
    return tuple(entries)
