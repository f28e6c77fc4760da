"""EC2 instances: launches, lifecycle, interfaces, disks, spot, hibernation, fault injection."""
