"""IAM for the tests: the calls that the code under test sends, and whether a policy grants them."""
