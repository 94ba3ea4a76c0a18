"""Every setting: its type and default, what is allowed, and where the value in force came from."""
