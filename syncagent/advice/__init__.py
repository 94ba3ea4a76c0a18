"""What to do about a line that waits: read from its syntax, the call, and the library in between.

:mod:`reading` finds the expression and what becomes of its value; :mod:`rules` is the table of patterns; :mod:`options`
is the table of options of libraries; :mod:`advise` puts them together.
"""
