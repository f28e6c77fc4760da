"""What is done with machines: launches, their lifecycle, their interfaces and disks, fault injection."""
