"""What every other room may lean on: files, text, the log, threads; nothing in here knows of torch or of syncs."""
