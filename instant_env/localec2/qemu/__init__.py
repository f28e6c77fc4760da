"""One virtual machine and its disks: the command line, QMP, disk images and their copies."""
