"""Between a request for a machine and EC2's answer: what is repeated, and what a refusal means."""
