"""Plan a run: arguments and experiment files become attempts in an order, with an estimate of their cost."""
