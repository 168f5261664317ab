"""Copies of photos in which faces cannot be recognised."""
