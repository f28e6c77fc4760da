"""localec2: the EC2 API on loopback. moto is the control plane, QEMU the data plane.

Other packages reach it over HTTP only; :mod:`instant_env.localec2.starter` is the one module they import.
"""
