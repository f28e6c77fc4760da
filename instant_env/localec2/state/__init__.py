"""The records in memory, shown in moto's model, under one lock."""
