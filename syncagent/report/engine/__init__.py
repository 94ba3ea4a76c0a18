"""Merges the files of many ranks with DuckDB, which the extra ``ranks`` installs.

Python reads the files and looks at what is small: one head for each file, and the few hundred rows of the result.  What
grows with the ranks, which is every site, sync and step of each of them, is only ever in DuckDB's tables.
"""
