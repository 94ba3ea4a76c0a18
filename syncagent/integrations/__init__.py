"""Integrations into other tools, one file each; :mod:`syncagent.integrations.base` says how one is written."""
