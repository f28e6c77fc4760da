"""What the tests know of Amazon Linux 2023: its packages' names, and imitations of its programs."""
