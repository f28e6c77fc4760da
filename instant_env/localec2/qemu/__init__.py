"""One virtual machine and its disks: the command line, QMP, copies of disks."""
