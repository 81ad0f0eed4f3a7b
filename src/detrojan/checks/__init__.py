"""Checks of an untrusted checkpoint, a file each."""
