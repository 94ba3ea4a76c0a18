"""What happens at a host sync that nothing allows: nothing, a warning, or an error at the user's line.

:mod:`~syncagent.policy.judge` decides; what may pass comes from :mod:`~syncagent.policy.scopes` (``allow`` blocks) and
:mod:`~syncagent.policy.allowances` (settings, packs, a baseline); :mod:`~syncagent.policy.budgets` judges whole steps
instead of single syncs; :mod:`~syncagent.policy.remote` changes the policy of a job that is running.
"""

from __future__ import annotations

from syncagent.policy.judge import Policy
from syncagent.policy.scopes import allow

__all__ = ["Policy", "allow"]
