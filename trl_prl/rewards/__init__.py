"""Outcome checks and process rewards as callables: calling them, and checking what they return.

Imports from: `steps`, `credit`. Start with: `scoring.py` for process rewards, `answers.py` for outcomes.
"""
