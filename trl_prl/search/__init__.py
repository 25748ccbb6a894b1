"""Answers by search at test time, and accuracy against compute.

Imports from: `jobs`, `verifier`, `report` and what lies below; not `evaluation`.
Start with: `step_search.py`, then `beams.py`.
"""
