"""What an account needs once, and what is there of it.

findings.py is what each look answers; group.py, roles.py and subnets.py find or make one piece each;
reaper.py deploys reaper_function.py, which ends what has expired; checks.py looks at quotas and permissions;
setup.py puts them together, and checklist.py shows all of it and makes nothing.
"""
