"""The bakery: recipe + base + architecture -> plan (pure), plan + builder machine -> verified AMI.

``recipe`` reads and validates, ``plan`` renders steps and hashes them, ``builder`` is the machine,
``execute`` runs the steps on it, ``seal`` is the last step of every bake, ``proof`` boots the image, runs the
recipe's checks and audits its bytes, ``manifest`` records how it was made, ``bake`` ties them together.
"""
