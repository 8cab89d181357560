"""What commands, monitors and servers say to each other."""
