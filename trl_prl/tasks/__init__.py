"""Small tasks with exact process rewards: what a prover would score is known in closed form, so nothing is learned.

Layer 1: each module needs one outside thing (a model, a data set), imported where it is used.
"""
