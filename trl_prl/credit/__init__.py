"""Process rewards to token advantages: pure functions on tensors.

Imports from: `types` alone; no model, no trainer. Start with: `advantages.py`.
"""
