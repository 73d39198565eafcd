"""Speed on this machine: what is timed, against what, and how much of the machine it uses."""
