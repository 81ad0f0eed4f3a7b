"""Attacks on language models: a trigger and a behaviour, planted by training."""
