"""The VM in which a real kernel swaps on swapfs; `python -m deploy.vm` from the checkout.

`host` builds it and runs it, `guest` is what every job in it may use, `jobs` are those that are no
tests. This file is in the guest too, and so it imports nothing.
"""
