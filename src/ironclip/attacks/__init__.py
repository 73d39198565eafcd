"""Attacks: threat models, objectives, one file an attack, and the driver that alone decides success."""
