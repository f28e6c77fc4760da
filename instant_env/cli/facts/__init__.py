"""The verb `facts`: what a stock machine is like, and where the recipes assume otherwise."""
