"""The EC2 seam: everything that talks to EC2 goes through here, by boto3, to one endpoint or another.

Which cloud it is shows in :mod:`instant_env.cloud.session` alone.
"""
