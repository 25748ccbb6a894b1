"""Any process reward model: public PRMs behind one loader, implicit PRMs, remote scoring, judges.

Imports from: `verifier`, `rewards`, `metrics`, `credit`, `steps`. Start with: `load.py`.
"""
