"""Clouds as tests see them, beside those that are a module of support."""
