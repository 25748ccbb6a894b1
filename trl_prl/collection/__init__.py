"""Step values by Monte-Carlo rollouts, as data for a verifier.

Imports from: `jobs`, `generation` and what lies below. Start with: `monte_carlo.py`.
"""
