"""What a report says of its sites."""

from __future__ import annotations

import ast
import gc
from dataclasses import replace

import pytest

from syncagent.advice.what import What, say
from syncagent.attribution.callsite import CallSites
from syncagent.events import CallSite, Span
from syncagent.report.advising import advised, for_line
from syncagent.report.model import Overhead, Report, RunInfo, SiteRow, Totals

RUN = RunInfo("", 1.0, None, None, "GPU", "", None, None, 9, "observe", "auto", simulated=False)
SITES = "/v/lib/python3.12/site-packages"


@pytest.fixture
def site(tmp_path):
    """A site of a file with that line."""

    def make(source, op="aten::_local_scalar_dense", kind="scalar_read", **changed):
        file = tmp_path / "train.py"
        file.write_text(f"{source}\n")
        row = SiteRow(
            op, None, kind, str(file), 1, "<module>", source, "other", 9, 1.0, 9.0, 1.0, 1.0, sampled=False,
            allowed=None, step_stall_ms=8.0,
        )  # fmt: skip
        return replace(row, **changed)

    return make


def advice(row):
    report = Report(RUN, (), Overhead(None, None), 0, Totals(9, 9.0, 0.1), (row,))
    return advised(report).sites[0].advice


def test_set_up_is_left_alone_whatever_it_is(site):
    """Such as net.to(device): a copy for each parameter, and many of them for each of few steps."""
    assert advice(site("net.to('cuda')", "aten::copy_", "copy_h2d", step_stall_ms=0.0)) == (
        "this is before the second step, or after the last: leave it"
    )


def test_what_is_allowed_gets_no_advice(site):
    assert advice(site("loss.item()", allowed="logging")) is None


def test_a_file_that_has_changed_since_says_only_what_the_op_tells(site):
    row = site("x[mask]", "aten::index", "dynamic_shape")
    assert advice(row).startswith("probably: keep the shape")
    assert advice(replace(row, source="y[mask]")).startswith("probably: keep the shape")
    assert advice(replace(site("loss.item()"), source="other()")) is None


def test_a_line_of_a_library_is_known_by_its_whole_statement():
    """The line that waits may be ``if (`` alone."""
    head = "if (args.logging_nan_inf_filter and torch.isnan(tr_loss_step)):"
    library = CallSite(f"{SITES}/transformers/trainer.py", 5, "Trainer._inner_training_loop", "if (", head)
    assert str(for_line("aten::is_nonzero", None, "scalar_read", None, library)).startswith(
        "probably: TrainingArguments(logging_nan_inf_filter=False)"
    )


@pytest.mark.parametrize(
    ("file", "function"),
    [(f"{SITES}/torch/fx/graph_module.py", "_WrappedCall.__call__"), ("/tmp/torchinductor_me/ab/cabd.py", "call")],
)
def test_what_runs_a_graph_of_the_programs_own_is_no_library_that_waits(site, file, function):
    """The op is known, and not the line of the model that it comes from."""
    row = site("out = compiled(x)", "aten::index", "dynamic_shape")
    library = CallSite(file, 9, function, "return call(*args)")
    assert advice(replace(row, library=library)).startswith("probably: keep the shape")
    assert advice(replace(row, library=library, op="aten::_local_scalar_dense", kind="scalar_read")) is None


def test_what_a_library_does_rarely_is_told_apart_from_what_it_does_in_every_step():
    file = f"{SITES}/lightning/fabric/utilities/apply_func.py"
    library = CallSite(file, 5, "convert_tensors_to_scalars.<locals>.to_item", "return value.item()")
    rarely, often = (for_line("aten::item", None, "scalar_read", None, library, rate) for rate in (0.2, 4.0))
    assert "a larger log_every_n_steps makes that rarer" in str(rarely)
    assert str(often).startswith("self.log(..., prog_bar=False)")


@pytest.mark.parametrize(
    ("file", "statement", "words"),
    [
        ("sgd.py", "param.add_(grad, alpha=-lr)", "fused=True, or a learning rate that is a number: "),
        ("adam.py", "param.addcdiv_(exp_avg, denom, value=-step_size)", "fused=True or capturable=True, or a learning"),
        ("adam.py", "step = _get_value(step_t)", "fused=True or capturable=True: the step counters"),
        ("adagrad.py", "step = _get_value(step_t)", "fused=True: the step counters"),
        ("radam.py", "step = _get_value(step_t)", "capturable=True (of Adagrad fused=True): the step counters"),
        ("asgd.py", "torch.as_tensor(1 / max(1, _get_value(step) - t0), device=device)", "ASGD(..., capturable=True)"),
        ("_functional.py", "grad = grad.coalesce()", "SparseAdam adds up the gradients"),
    ],
)
def test_an_optimizer_is_given_an_option_that_it_has(file, statement, words):
    """SGD has no capturable, RAdam no fused."""
    function = "sparse_adam" if file == "_functional.py" else f"_single_tensor_{file[:-3]}"
    library = CallSite(f"{SITES}/torch/optim/{file}", 5, function, statement)
    assert str(for_line("aten::item", None, "scalar_read", None, library)).startswith(words)


def test_several_reads_every_few_steps_are_rare_all_the_same(site, tmp_path):
    source = "print(loss.item(), norm.item())"
    row = site(source, per_step=0.2)
    (tmp_path / "train.py").write_text(f"for step in range(99):\n    if step % 10 == 0:\n        {source}\n")
    assert advice(replace(row, line=3)) == "this happens only now and then: leave it"
    assert "now and then" not in advice(replace(row, line=3, per_step=2.0))


@pytest.mark.parametrize(
    "before",
    ["#     what was tried before\n", '        mark = "\x0c"\n', '        mark = "\N{LINE SEPARATOR}"\n', "\x0c\n"],
    ids=["comment-further-out", "form-feed", "line-separator", "form-feed-alone"],
)
def test_the_expression_is_found_whatever_stands_in_its_function(site, tmp_path, before):
    """What is certain does not say "probably"."""
    source = "if x.item() > 2:"
    text = f"class A:\n    def f(self, x):\n{before}        {source}\n            self.y = 2\n"
    row = site(source)
    (tmp_path / "train.py").write_text(text)
    line = text.split("\n").index(f"        {source}") + 1
    said = advice(replace(row, line=line, span=Span(11, line, 19, 8)))
    assert said == str(say(What.BRANCH))


def test_a_block_whose_text_cannot_be_parsed_is_read_from_the_statement(site, tmp_path):
    """The string ends what looks like the function."""
    source = "for x in y.tolist():"
    text = f'def f(y):\n    """\nNotes\n    """\n    while True:\n        {source}\n            print(x)\n'
    row = site(source, "aten::to", "copy_d2h")
    (tmp_path / "train.py").write_text(text)
    assert advice(replace(row, line=6, span=Span(17, 6, 27, 8))) is not None


def test_a_match_decides_like_an_if(site, tmp_path):
    row = site("match x.item():")
    (tmp_path / "train.py").write_text("def f(x):\n    match x.item():\n        case 1:\n            return 2\n")
    assert advice(replace(row, line=2, span=Span(10, 2, 18, 4))) == str(say(What.BRANCH))


def test_a_function_in_one_branch_ends_before_the_other(site, tmp_path):
    source = "if y.item() > 2:"
    text = f"if fast:\n    def f(y):\n        {source}\n            return 0\nelse:\n    def f(y):\n        return y\n"
    row = site(source)
    (tmp_path / "train.py").write_text(text)
    assert not advice(replace(row, line=3, span=Span(11, 3, 19, 8))).startswith("probably")


def test_an_expression_that_is_nested_too_deeply_is_passed_over(site, tmp_path):
    row = site("n = x.item()")
    deep = f"n = x.item()\nfor x in {'loader + ' * 500}loader:\n    pass\n"
    (tmp_path / "train.py").write_text(deep)
    assert advice(replace(row, per_step=0.5, span=Span(4, 1, 12, 0))) is None


def test_a_table_of_numbers_is_not_parsed_and_shown_by_its_beginning(site, tmp_path):
    text = f"table = [{'1, ' * 40_000}x.item()]"
    code = compile(text, str(tmp_path / "train.py"), "exec")
    site(text)
    line = CallSites().resolve((code, len(code.co_code) - 2))
    assert len(line.source) == 2_000
    assert not line.statement
    assert for_line("aten::_local_scalar_dense", None, "scalar_read", line, None) is None


def test_what_was_parsed_is_not_kept(site, tmp_path):
    """A large program's syntax trees would stay in the memory of the job."""
    text = "def f(x):\n" + "    y = x.item() + 1\n" * 50
    row = site(text.rstrip("\n"))
    rows = []
    for number in range(20):
        file = tmp_path / f"part{number}.py"
        file.write_text(text.replace("f(x)", f"f{number}(x)"))
        rows.append(replace(row, file=str(file), line=20, source="y = x.item() + 1", id=number))
    report = Report(RUN, (), Overhead(None, None), 0, Totals(9, 9.0, 0.1), tuple(rows))
    gc.collect()
    before = sum(issubclass(type(found), ast.AST) for found in gc.get_objects())
    assert all(site.advice for site in advised(report).sites)
    gc.collect()
    assert sum(issubclass(type(found), ast.AST) for found in gc.get_objects()) <= before


@pytest.mark.parametrize(
    ("source", "waits", "words"),
    [
        (
            "x = torch.tensor(values, device=device)",
            "torch.tensor(values, device=device)",
            "its values come from the host",
        ),
        ("x = torch.tensor([1.0, 2.0]).to(device)", "torch.tensor([1.0, 2.0]).to(device)", "make it once, outside of"),
        ("x = torch.ones(3).to(device)", "torch.ones(3).to(device)", "make it on the GPU (device=...)"),
        (
            "y = x.to(device, non_blocking=True)",
            "x.to(device, non_blocking=True)",
            "without it non_blocking=True waits",
        ),
        ("self.ptr[0] = (ptr + n) % 64", "self.ptr[0]", "probably: the number is copied from the host"),
        ("mask[b, best] = 0", "mask[b, best]", "x[i].fill_(number) where i is one number"),
        ("v = logits[:, [3, 4]]", "logits[:, [3, 4]]", "a slice does it without an index"),
        ("v = logits[:, [3, 5]]", "logits[:, [3, 5]]", "build the index on the GPU once"),
    ],
)
def test_the_words_for_a_copy_fit_what_is_copied(site, source, waits, words):
    begin = source.index(waits)
    row = replace(site(source), op="aten::copy_", kind="copy_h2d", span=Span(begin, 1, begin + len(waits)))
    assert words in advice(row)


def test_a_loop_that_ends_by_a_value_is_decided_on_the_host(site):
    row = replace(site("while (nxt == 0).all(): go()"), api="torch.Tensor.__bool__", span=Span(6, 1, 22))
    assert advice(row).startswith("the host decides how long the loop runs: ask only every N rounds")


def test_nothing_is_said_of_a_read_in_the_backward_pass_that_its_forward_line_does_not_show(site):
    row = replace(site("loss = z.mean() + cov.trace()"), api="torch.Tensor.backward", per_step=1.0)
    forward = CallSite(row.file, 1, "f", row.source, span=Span(18, 1, 29))
    assert advice(replace(row, forward=forward)) is None


@pytest.mark.parametrize(
    ("source", "waits", "op", "kind", "what"),
    [
        ("if g.abs().max() > 100: g = g / 100", "g.abs().max() > 100", "aten::is_nonzero", "scalar_read", What.BRANCH),
        ("x.register_hook(lambda g: g[g > 0])", "g[g > 0]", "aten::index", "dynamic_shape", What.MASK),
    ],
)
def test_what_the_programs_own_code_does_in_the_backward_pass_is_of_its_own_line(site, source, waits, op, kind, what):
    """Of a function or a hook: not of the forward line, nor has it any options of backward()."""
    forward = CallSite("train.py", 1, "f", "out = Checked.apply(x)")
    row = site(source, op, kind, api="torch.Tensor.backward", phase="backward", forward=forward)
    begin = source.index(waits)
    assert advice(replace(row, span=Span(begin, 1, begin + len(waits)))) == str(say(what))


def test_what_waits_in_the_backward_pass_of_a_trainer_is_of_the_forward_line(site, tmp_path):
    """The trainer's own line calls backward(), and has no option."""
    library = CallSite(
        f"{SITES}/lightning/pytorch/core/module.py", 5, "LightningModule.backward", "loss.backward(*args)"
    )
    row = site("trainer.fit(model)", "aten::index_put_", "dynamic_shape", phase="backward", library=library)
    model = tmp_path / "model.py"
    model.write_text("loss = per_item[valid].mean()\n")
    forward = CallSite(str(model), 1, "f", "loss = per_item[valid].mean()", span=Span(7, 1, 22))
    assert advice(replace(row, forward=forward)) == str(say(What.MASK))
    assert advice(row).startswith("probably: keep the shape in the forward pass")


@pytest.mark.parametrize(
    ("op", "kind", "words"),
    [
        ("aten::index_put_", "dynamic_shape", "probably: keep the shape in the forward pass"),
        ("aten::copy_", "copy_h2d", "probably: build the indices of the forward pass on the GPU"),
    ],
)
def test_a_backward_pass_whose_forward_line_is_not_known_is_not_taken_for_what_waits(site, op, kind, words):
    """The same op, in the forward pass, would assign by a mask."""
    assert advice(site("loss.backward()", op, kind, phase="backward", span=Span(0, 1, 15))).startswith(words)


@pytest.mark.parametrize("asks", ["", f"set_detect_anomaly({True})"])  # this is a module of the user's, too
def test_a_search_for_anomalies_is_named_where_the_program_asks_for_it(site, tmp_path, asks):
    row = site("loss.backward()", api="torch.Tensor.backward", phase="backward", span=Span(0, 1, 15))
    (tmp_path / "train.py").write_text(f"loss.backward()\nloss = criterion(x)\n{asks}\n")
    said = advice(replace(row, forward=CallSite(row.file, 2, "<module>", "loss = criterion(x)")))
    assert said is None if not asks else said.endswith(f"(it is asked for at {row.file}:3)")
    assert not asks or said.startswith("probably: set_detect_anomaly(False): ")


def test_what_was_counted_in_every_step_is_not_called_rare(site, tmp_path):
    """Whatever the text says: several arrays are copied every N steps here."""
    source = "curve.append(out.cpu().numpy())"
    row = replace(site(source, "aten::copy_", "copy_d2h"), line=3, span=Span(21, 3, 30, 8))
    (tmp_path / "train.py").write_text(f"for step in range(99):\n    if step % 10 == 0:\n        {source}\n")
    assert advice(replace(row, per_step=0.5)) == "this happens only now and then: leave it"
    assert "now and then" not in advice(replace(row, per_step=2.0))


@pytest.mark.parametrize(
    ("source", "waits", "words"),
    [
        ("y = x.clamp(max=top.item())", "top.item()", "leave it a tensor: clamp takes one as well as a number"),
        ("y = x.clamp(max=math.sqrt(top.var()))", "math.sqrt(top.var())", "torch.sqrt in place of math.sqrt"),
        ("y = torch.full((8, 4), top.item())", "top.item()", "value.expand(size)"),
        (
            "i = torch.randint(0, n.item(), (8,))",
            "n.item()",
            "(low + (high - low) * torch.rand(size, device=...)).long()",
        ),
    ],
)
def test_a_number_that_goes_back_to_the_gpu_is_left_there(site, source, waits, words):
    begin = source.index(waits)
    assert words in advice(replace(site(source), span=Span(begin, 1, begin + len(waits))))


def test_a_count_that_max_guards_is_to_be_clamped(site, tmp_path):
    """Else the maximum would wait in its place."""
    source = "count = mask.sum().item()"
    row = site(source, span=Span(8, 1, 25))
    (tmp_path / "train.py").write_text(f"{source}\nloss = total / max(count, 1)\nloss.backward()\n")
    assert "write clamp(min=...)" in advice(row)


def test_other_uses_of_max_are_not_spoken_of(site, tmp_path):
    source = "count = mask.sum().item()"
    row = site(source, span=Span(8, 1, 25))
    (tmp_path / "train.py").write_text(f"{source}\nloss = total / count\nn = max(n, loss.max())\nloss.backward()\n")
    assert advice(row) == "leave it a tensor, which takes part in arithmetic as a number does"


def test_an_event_that_measures_time_is_to_be_read_later(site, tmp_path):
    source = "end.synchronize()"
    row = site(source, "cudaEventSynchronize", "explicit", span=Span(0, 1, len(source)))
    assert advice(row).startswith("remove it")
    timed = tmp_path / "timed.py"
    timed.write_text(f"{source}\nms = start.elapsed_time(end)\n")
    assert (
        advice(replace(row, file=str(timed)))
        == "read elapsed_time() some steps later, when the event's query() is true"
    )
