"""Measures what documents cost on the device at hand."""
