"""Which prover, which K and which alpha suit a policy, from collected values.

Imports from: `report`, `metrics`, `jobs`. Start with: `diagnosis.py`.
"""
