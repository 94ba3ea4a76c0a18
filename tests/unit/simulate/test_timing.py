"""How long a GPU would take for some work: the formulas, and what an op's work is."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from syncagent.settings.schema import ModelledGPU
from syncagent.simulate import timing, work
from syncagent.simulate.datasheets import GPUS
from syncagent.simulate.memory import Box, Layout, Placement, stride_for
from syncagent.simulate.timing import Work, duration_ns, launch_ns

aten = torch.ops.aten


def placed(*size, dtype=torch.float32, stride=None):
    layout = Layout(size, stride or stride_for(size), 0, dtype)
    return Placement(Box(layout), layout, 0)


def of(op, *args, made=(), written=(), **kwargs):
    return work.of_op(op, op._schema.name, args, kwargs, made, written)


def test_the_setting_has_the_gpus_that_have_a_datasheet():
    assert set(get_args(ModelledGPU)) == set(GPUS)
    assert all(sheet.source.startswith("https://") for sheet in GPUS.values())
    assert all(sheet.rates.keys() == timing.RATE_SHARE.keys() for sheet in GPUS.values())


@pytest.mark.parametrize("name", GPUS)
def test_memory_bounds_what_has_few_operations(name):
    gpu = GPUS[name]
    seconds = 10**9 / (gpu.bandwidth * timing.MEMORY_SHARE)
    assert duration_ns(Work(nbytes=10**9, flops=10), gpu) == round(seconds * 1e9) + timing.KERNEL_NS


@pytest.mark.parametrize("rate", timing.RATE_SHARE)
def test_arithmetic_bounds_what_has_many(rate):
    gpu = GPUS["A100"]
    seconds = 10**12 / (gpu.rates[rate] * timing.RATE_SHARE[rate])
    found = duration_ns(Work(nbytes=100, flops=10**12, rate=rate, kernels=3), gpu)
    assert found == round(seconds * 1e9) + 3 * timing.KERNEL_NS


def test_a_copy_to_the_host_takes_the_links_time_or_the_drivers():
    gpu = GPUS["H100"]
    pinned, pageable = (duration_ns(Work(transferred=10**9, is_pinned=x), gpu) for x in (True, False))
    assert pinned == timing.TRANSFER_NS + round(1e9 * 10**9 / (gpu.link * timing.LINK_SHARE))
    assert pageable == timing.TRANSFER_NS + round(1e9 * 10**9 / timing.PAGEABLE)


def test_time_steps_follow_each_other():
    work_of_layer = Work(nbytes=100, serial=50)
    assert duration_ns(work_of_layer, GPUS["L4"]) == 50 * timing.SERIAL_NS + timing.KERNEL_NS
    assert launch_ns(work_of_layer) == 51 * timing.LAUNCH_NS


def test_products_cost_the_host_the_choice_of_a_kernel():
    assert launch_ns(Work(flops=1)) - launch_ns(Work()) == timing.LIBRARY_NS


# --- the work of an op -------------------------------------------------------------------------------------


def test_a_product_has_the_operations_that_torch_counts():
    found = of(aten.mm.default, placed(3, 5), placed(5, 7), made=[placed(3, 7)])
    assert found == Work(nbytes=4 * (15 + 35 + 21), flops=2 * 3 * 5 * 7, rate="fp32")


@pytest.mark.parametrize(
    ("dtype", "rate"), [(torch.float16, "half"), (torch.bfloat16, "half"), (torch.float64, "fp64")]
)
def test_its_type_says_which_rate_it_has(dtype, rate):
    x = placed(4, 4, dtype=dtype)
    assert of(aten.mm.default, x, x, made=[placed(4, 4, dtype=dtype)]).rate == rate


def test_a_convolution_may_be_computed_in_tf32_by_default():
    x, weight, made = placed(2, 3, 8, 8), placed(4, 3, 3, 3), placed(2, 4, 6, 6)
    found = of(aten.convolution.default, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, made=[made])
    assert (found.flops, found.rate) == (2 * 2 * 4 * 6 * 6 * 3 * 3 * 3, "tf32")


def test_its_backward_pass_counts_only_the_gradients_that_are_asked_for():
    gradient, x, weight = placed(2, 4, 6, 6), placed(2, 3, 8, 8), placed(4, 3, 3, 3)
    rest = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    both, one = (
        of(aten.convolution_backward.default, gradient, x, weight, *rest, [asked, True, False], made=[x, weight, None])
        for asked in (True, False)
    )
    assert both.flops == 2 * one.flops > 0
    assert both.kernels == 3


def test_the_cpus_fused_attention_counts_as_cudas():
    x = placed(2, 4, 16, 8)
    op = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert of(op, x, x, x, made=[x, placed(2, 4, 16)]).flops == 2 * (2 * 2 * 4 * 16 * 16 * 8)


def test_what_is_read_and_written_counts_once_each():
    x = placed(10)
    assert of(aten.add.Tensor, x, x, made=[placed(10)]).nbytes == 80
    assert of(aten.add_.Tensor, x, placed(10), written=[x]).nbytes == 120
    assert of(aten.fill_.Scalar, x, 1, written=[x]).nbytes == 40


def test_an_expanded_tensor_counts_with_what_it_really_has():
    assert work.nbytes_of(Layout((1000, 3), (0, 1), 0, torch.float64)) == 24
    assert work.nbytes_of(Layout((0, 3), (3, 1), 0, torch.float64)) == 0


def test_a_look_up_reads_what_it_returns():
    table, indices = placed(100_000, 8), placed(5, dtype=torch.int64)
    assert of(aten.embedding.default, table, indices, made=[placed(5, 8)]).nbytes == 2 * 5 * 8 * 4 + 5 * 8


def test_an_assignment_to_a_part_changes_that_part():
    table, indices, values = placed(100_000, 8), placed(5, dtype=torch.int64), placed(5, 8)
    found = of(aten.index_put_.default, table, [indices], values, written=[table])
    assert found.nbytes == 3 * (5 * 8 + 5 * 8 * 4)


def test_lists_of_tensors_take_few_kernels():
    tensors = [placed(4) for _ in range(100)]
    assert of(aten._foreach_add_.Scalar, tensors, 1.0, written=tensors).kernels == 3


def test_a_layer_of_time_steps_has_as_many_as_its_source():
    source, state = placed(10, 4, 8), placed(1, 4, 16)
    weights = [placed(64, 8), placed(64, 16), placed(64), placed(64)]
    found = work.of_named("aten::lstm", [source, state, state, *weights], [placed(10, 4, 16)])
    assert (found.serial, found.flops) == (10, 2 * 40 * (64 * 8 + 64 * 16))
    back = work.of_named("aten::lstm_backward", [source, state, state, *weights], [])
    assert (back.serial, back.flops) == (20, 2 * found.flops)


def test_a_call_that_torch_cannot_count_is_named():
    with pytest.warns(UserWarning, match=r"aten\.mm\.default: torch cannot count the operations of this call"):
        assert of(aten.mm.default, placed(3, 5), placed(4, 7), made=[placed(3, 7)]).flops == 0
