"""What an instance is told to be: options, their values, and the checks on them."""
