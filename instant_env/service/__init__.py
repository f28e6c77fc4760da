"""Machines by HTTP: an SSH public key in, a machine one can log in to out.

records < store < operations < engine < web < server. The engine owns leases and pools and knows no HTTP;
the web room knows no EC2.
"""
