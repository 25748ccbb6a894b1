"""Tests of `trl_prl`."""
