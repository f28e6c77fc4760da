"""Launch templates: what a launch may take its parameters from."""
