"""Backdoor attacks on image classifiers, one a file."""
