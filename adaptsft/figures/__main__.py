import sys

from adaptsft.figures.command import main

sys.exit(main(sys.argv[1:]))
