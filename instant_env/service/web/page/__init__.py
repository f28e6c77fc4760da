"""The page at ``/``: rendered here, kept fresh by one small script. Nothing is loaded from elsewhere."""
