"""The EC2 seam: everything that talks to EC2 goes through here, by boto3, to one endpoint or another.

Only :mod:`instant_env.cloud.session` knows which cloud it is.
"""
