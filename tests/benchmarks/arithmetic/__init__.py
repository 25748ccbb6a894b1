"""Arithmetic in text, one running result a line: exact values, and a policy and a verifier that tests start from."""
