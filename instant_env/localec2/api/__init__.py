"""HTTP and AWS's protocols: signatures, what each action takes, one mixin for the actions of a resource."""
