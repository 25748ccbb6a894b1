"""Where the steps of a completion end, found on the bytes of the sampled tokens.

Imports from: `types` alone; no model, no trainer. Start with: `split.py`.
"""
