"""HTTP: routes, problems, limits, the page, and the listener. It calls Operations and knows no EC2."""
