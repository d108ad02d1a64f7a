"""`python -m mqttcollab` is the command line."""

from mqttcollab.cli import main

main()
