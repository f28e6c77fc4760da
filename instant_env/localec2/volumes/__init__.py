"""EBS and AMIs: volumes, snapshots and images, whose bytes outlive machines."""
