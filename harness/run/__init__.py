"""Carry a plan out: fill, launch, write a row of each attempt, end its machine."""
