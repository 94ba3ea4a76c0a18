"""Fires syncs that are known, behind work of known length, and judges what the agent says of them.

It runs in a process of its own (``python -m syncagent.selftest``): no agent, setting or simulated device of the
caller's reaches it, and it leaves none behind.
"""
