"""`python -m m3dist`"""

from m3dist.cli.main import main

main()
