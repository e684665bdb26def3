"""Dagster: what a study is there, and everything that drives its runs."""
