"""What a person reads: the model of a report, its files and formats, and what changed between two."""

from __future__ import annotations

from syncagent.report import files, model

model.use_files(files)
