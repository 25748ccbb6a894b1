"""The command line: one module a subcommand, arguments in, one call, text out.

Imports from: every wing below. Start with: `score.py`; `trl_prl/__main__.py` calls them.
"""
