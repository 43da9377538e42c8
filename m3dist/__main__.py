"""`python -m m3dist`"""

from m3dist.cli import main

main()
