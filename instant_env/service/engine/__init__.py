"""Leases and pools: what the service does with machines. No HTTP here, and EC2 only behind fleet.py.

context.py is what the parts share; leases.py and pools.py carry out, endings.py and tower.py clean up,
selection.py chooses, engine.py puts them together.
"""
