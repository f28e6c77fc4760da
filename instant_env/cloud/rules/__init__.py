"""What EC2 asks of every caller: patience with what was just made, names that it accepts."""
