"""How strict the server is: the switches, and the ages of things that EC2 tells of late."""
