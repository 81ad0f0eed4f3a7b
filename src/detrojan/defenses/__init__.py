"""Defenses, one method a file. None of them imports an attack."""
