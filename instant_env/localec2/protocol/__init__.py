"""A request as AWS's protocols carry it: its signature, its one reading, its refusals."""
