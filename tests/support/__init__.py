"""What tests share: clouds to test in, servers and terminals that pretend, and ways to wait."""
