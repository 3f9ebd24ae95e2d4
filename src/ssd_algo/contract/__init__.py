"""What the platform hands a container and what it wants back."""
