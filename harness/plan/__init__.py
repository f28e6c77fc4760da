"""What a run will measure: arguments and definition files become attempts in order, with prices."""
