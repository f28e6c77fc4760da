"""Copy an AMI to another cloud without a builder: write its snapshots' bytes there and register them."""
