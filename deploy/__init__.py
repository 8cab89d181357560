"""What surrounds swapfs where it runs.

Code here is the test VM's, `python -m deploy.vm`, and a bare Debian's, `python -m deploy.bare`.
"""
