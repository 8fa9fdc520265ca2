"""Sweeps: a `sweep(add)` at the bottom of a config, planned, run locally or printed for a cluster, resumed exactly."""
