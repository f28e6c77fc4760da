"""What only somebody who means harm sends."""
