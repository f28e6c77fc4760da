"""Facts of a stock machine: read from it, and compared with what the recipes assume."""
