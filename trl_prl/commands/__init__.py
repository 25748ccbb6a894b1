"""The command line: one module a subcommand, arguments in, one call, text out.

Imports from: every wing below. Start with: `main.py`.
"""
