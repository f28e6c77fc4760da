"""Container images without a registry and without Docker: archives as `docker save` writes them."""
