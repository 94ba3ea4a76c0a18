"""What every other room may use: files, text, the log, threads; nothing in here knows about torch or syncs."""
