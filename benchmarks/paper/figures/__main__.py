import sys

from benchmarks.paper.figures.command import main

sys.exit(main(sys.argv[1:]))
