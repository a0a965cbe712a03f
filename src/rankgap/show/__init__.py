"""What people look at: the terminal, pictures, and the report."""
