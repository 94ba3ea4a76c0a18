"""``python -m syncagent`` is the ``syncagent`` command."""

from __future__ import annotations

from syncagent.cli import main

raise SystemExit(main())
