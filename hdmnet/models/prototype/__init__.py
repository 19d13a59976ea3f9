"""Prototypes on a frozen trunk; nothing is trained."""
