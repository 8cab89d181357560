"""What surrounds swapfs where it runs. The only code here is the test VM: `python -m deploy.vm`."""
