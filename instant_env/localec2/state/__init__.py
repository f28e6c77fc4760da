"""The records in memory under one lock, and their copy in moto's model, which answers Describe calls."""
