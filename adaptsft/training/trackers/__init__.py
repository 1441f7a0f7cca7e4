"""Where the curves of a run go: a module for each service, which alone imports its package."""
