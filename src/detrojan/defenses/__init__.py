"""Defenses, one method a file, and what they share (push). None of them imports an attack."""
