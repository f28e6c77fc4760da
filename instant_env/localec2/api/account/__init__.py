"""What is asked of the account and its region, and of no resource."""
