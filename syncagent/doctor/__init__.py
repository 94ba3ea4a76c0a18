"""Looks at what a run would find on this machine, and says in a sentence each what would not work and what to do.

Nothing is sent, written or fired: that is what ``syncagent selftest`` is for.
"""
