"""How often models are right, with intervals, and how two models compare.

Imports from: `jobs`, `verifier`, `report` and what lies below; not `search`.
Start with: `samples.py`, then `summary.py`.
"""
