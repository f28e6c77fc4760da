"""What stands when a client is killed after its n-th call, and what ends that.

`clients` are the processes that are killed, `standing` looks at what they leave.
"""
