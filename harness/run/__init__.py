"""Carry out a plan: for each attempt fill, launch, follow to the login, end the machine and write a row."""
