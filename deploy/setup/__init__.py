"""Setting up a machine that builds swapfs: its packages, the virtualenv, the build itself."""
