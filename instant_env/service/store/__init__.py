"""Where the service keeps its promises. protocol.py says what a store must do; sqlite.py does it."""
