"""Two finished results side by side."""
