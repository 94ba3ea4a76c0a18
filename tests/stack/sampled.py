"""A rank of a job whose steps are of three kinds, by their number modulo 3: ``sampled.py FOLDER``.

0: rank 1 waits for a long time, which is allowed.  1: rank 0 does what the policy forbids.  2: nothing special.
The last three run inside a span of the program's own, which has its own provider.
"""

from __future__ import annotations

import os

import torch
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from torch import nn

import syncagent

STEPS = 24
rank = int(os.environ["RANK"])
own = TracerProvider(resource=Resource.create({"syncagent.rank": rank}))
own.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
net = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1)).to("cuda")
big = torch.rand(1200, 1200, device="cuda")


class Checked(nn.Module):
    def forward(self, x):
        with torch.profiler.record_function("checking"):
            return x if x.isfinite().all() else x.zero_()


def train(step):
    with syncagent.allow("wanted"):
        y = Checked()(net(torch.rand(4, 16, device="cuda")))
        loss = y[y > 0].sum()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)
        if step % 3 == 0 and rank == 1:
            (big @ big @ big @ big @ big).sum().item()
    if step % 3 == 1 and rank == 0:
        loss.item()
    syncagent.step(step + 1)


syncagent.step(1)  # what came before it is step 0
for number in range(1, STEPS - 2):
    train(number)
with own.get_tracer("program").start_as_current_span("last steps"):
    for number in range(STEPS - 2, STEPS + 1):
        train(number)
own.shutdown()
