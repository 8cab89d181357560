"""What runs in the VM: its start, and what jobs share. Standard library and swapfs only."""
