"""Alembic's script directory. A change of schema.py needs a new file in versions/, and schema.REVISION its
revision; files that were released never change."""
