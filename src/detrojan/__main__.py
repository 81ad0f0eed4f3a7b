"""Allow `python -m detrojan` and `accelerate launch -m detrojan`."""

from detrojan.cli import main

main()
